// The statistics of one tile (mdlm_fast/ops/reference/_tiles.py) by the warp that holds it.
//
// The maximum comes first, from packed comparisons; its place is then overwritten by -inf, so that the maximum's own 1
// enters no sum; one pass over the registers forms the sums against that fixed maximum, so nothing is rescaled.
//
// Order of a sum, which depends on nothing but the column: word k (0..3) of a lane's vectors has a sum of its own, over
// the vectors in order and the lower half first; the lane's sum is (s0 + s2) + (s1 + s3); lanes add up by pairs at
// distances 16, 8, 4, 2, 1, which gives every lane the same bits.
#pragma once

#include "../common/ordered_key.h"
#include "tile.cuh"

namespace mdlm_fast::cuda {

// exp((z - m) / T) = 2^((z - m) scale). The difference is formed before the product: a multiply-add with a rounded
// m scale would shift every exponent alike. A temperature below 1e-30 is as good as 0, and its inverse still finite.
__device__ __forceinline__ float exponent_scale(float temperature) { return kLog2E / fmaxf(temperature, 1e-30f); }

template <class Element>
__device__ __forceinline__ std::uint32_t larger_word(std::uint32_t a, std::uint32_t b) {
  if constexpr (sizeof(Element) == 4)
    return as_bits(max_nan(as_float(a), as_float(b)));
  else
    return max_nan_pair<Element>(a, b);
}

template <class Element>
__device__ __forceinline__ std::uint32_t larger_word(const Vector& vector) {
  return larger_word<Element>(larger_word<Element>(vector.words[0], vector.words[1]),
                              larger_word<Element>(vector.words[2], vector.words[3]));
}

template <class Element>
__device__ __forceinline__ bool holds(std::uint32_t word, float value) {
  if constexpr (sizeof(Element) == 4)
    return as_float(word) == value;
  else
    return number<Element>(word, 0) == value || number<Element>(word, 1) == value;
}

// The largest number over all lanes of words that have been compared at least once (so that a NaN has no sign).
template <class Element>
__device__ __forceinline__ float warp_maximum(std::uint32_t word) {
  float value = number<Element>(word, 0);
  if constexpr (sizeof(Element) == 2) value = max_nan(value, number<Element>(word, 1));
  return from_ordered_key(__reduce_max_sync(kFullWarp, ordered_key(value)));
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kFullWarp, x, distance);
  return x;
}

// The largest number of a tile and its place; all lanes hold the same.
struct TileMaximum {
  float value;   // NaN if any number is
  int vector;    // kVectors if no number equals `value`
  int lane;
  int number;
  float second;  // largest of the others, if asked for

  template <class Registers>
  __device__ __forceinline__ int column() const {
    return Registers::column(vector, lane) + number;
  }
};

// The first leaf of a heap-ordered tree of maxima whose root holds `value`. Its path is followed by moving the subtree
// below it up: a few selects in place of a comparison for every leaf.
template <class Element, int kLeaves>
__device__ __forceinline__ int first_leaf(const std::uint32_t (&tree)[2 * kLeaves], float value) {
  if constexpr (kLeaves == 1) {
    return 0;
  } else {
    const bool right = !holds<Element>(tree[2], value);
    std::uint32_t subtree[kLeaves];
#pragma unroll
    for (int n = 1; n < kLeaves; ++n) {
      const int level = n < 2 ? 1 : n < 4 ? 2 : n < 8 ? 4 : 8;  // nodes of n's level, at most 16 / 2
      subtree[n] = right ? tree[n + 2 * level] : tree[n + level];
    }
    return (right ? kLeaves / 2 : 0) + first_leaf<Element, kLeaves / 2>(subtree, value);
  }
}

// Finds the first of the largest numbers and puts -inf in its place.
template <class Element>
__device__ __forceinline__ TileMaximum take_maximum(Tile<Element>& tile, int lane, bool wants_second) {
  using Registers = Tile<Element>;
  // A binary tree of maxima: node n has children 2 n and 2 n + 1, vector v is leaf kVectors + v.
  std::uint32_t tree[2 * Registers::kVectors];
#pragma unroll
  for (int v = 0; v < Registers::kVectors; ++v) tree[Registers::kVectors + v] = larger_word<Element>(tile.vectors[v]);
#pragma unroll
  for (int n = Registers::kVectors - 1; n > 0; --n) tree[n] = larger_word<Element>(tree[2 * n], tree[2 * n + 1]);
  TileMaximum maximum{warp_maximum<Element>(tree[1]), Registers::kVectors, 0, 0, -kInfinity};
  const bool mine = holds<Element>(tree[1], maximum.value);
  const int vector = mine ? first_leaf<Element, Registers::kVectors>(tree, maximum.value) : Registers::kVectors;
  const unsigned place = __reduce_min_sync(kFullWarp, static_cast<unsigned>(vector * kWarpSize + lane));
  maximum.vector = static_cast<int>(place / kWarpSize);
  maximum.lane = static_cast<int>(place % kWarpSize);
  if (maximum.vector < Registers::kVectors) {
    int found = 0;
    at_vector<0, Registers::kVectors>(maximum.vector, [&](auto v) {
      Vector& vector = tile.vectors[decltype(v)::value];
#pragma unroll
      for (int i = Registers::kPerVector - 1; i >= 0; --i)
        if (number<Element>(vector, i) == maximum.value) found = i;
      found = lane == maximum.lane ? found : -1;
#pragma unroll
      for (int i = 0; i < Registers::kPerVector; ++i)
        if (found == i) set_number<Element>(vector, i, kMinusInfinityBits<Element>);
      tree[Registers::kVectors + decltype(v)::value] = larger_word<Element>(vector);
    });
    maximum.number = __shfl_sync(kFullWarp, found, maximum.lane);
  }
  if (wants_second) {
    std::uint32_t word = tree[Registers::kVectors];
#pragma unroll
    for (int v = 1; v < Registers::kVectors; ++v) word = larger_word<Element>(word, tree[Registers::kVectors + v]);
    maximum.second = warp_maximum<Element>(word);
  }
  return maximum;
}

struct TileSums {
  float raw, tempered, moment;
};

// Sums over a tile relative to `reference`, the same in all lanes. kRaw: of exp(z - reference); kTempered: of
// exp((z - reference) / T); kMoment: of (z - reference) times the tempered exponential, if there is one and
// kMomentTempered, else times the raw one. Sums not asked for are 0. A term at -inf is 0 in all of them.
template <bool kRaw, bool kTempered, bool kMoment, bool kMomentTempered, class Element>
__device__ __forceinline__ TileSums sum_exponentials(const Tile<Element>& tile, float reference, float scale) {
  constexpr int kPerWord = 4 / static_cast<int>(sizeof(Element));
  float raw[4] = {}, tempered[4] = {}, moment[4] = {};
#pragma unroll
  for (int v = 0; v < Tile<Element>::kVectors; ++v)
#pragma unroll
    for (int i = 0; i < Tile<Element>::kPerVector; ++i) {
      const int k = i / kPerWord;
      const float d = number<Element>(tile.vectors[v], i) - reference;
      float e = 0.0f, w = 0.0f;
      if constexpr (kRaw) raw[k] += e = exp2_approx(d * kLog2E);
      if constexpr (kTempered) tempered[k] += w = exp2_approx(d * scale);
      if constexpr (kMoment) moment[k] = fmaf(fmaxf(d, -kLargest), kTempered && kMomentTempered ? w : e, moment[k]);
    }
  const auto total = [](const float* s) { return warp_sum((s[0] + s[2]) + (s[1] + s[3])); };
  return {kRaw ? total(raw) : 0.0f, kTempered ? total(tempered) : 0.0f, kMoment ? total(moment) : 0.0f};
}

// What is wanted of a tile, the same in all lanes.
struct StatisticsRequest {
  float temperature;
  bool tempered;         // sums at the temperature too, which is not 1
  bool tempered_moment;  // the moment is of the tempered distribution
  bool second;
};

struct TileStatistics {
  TileMaximum maximum;
  float rest;           // sum of exp(z - maximum), without the maximum itself
  float tempered_rest;  // the same with exponents divided by T; `rest` again if not asked for
  float moment;         // sum of d exp(d), d = z - maximum, divided by T if so asked
};

// All statistics of a tile, whose maximum is taken out. Without kMoment the moment is 0.
template <bool kMoment, class Element>
__device__ __forceinline__ TileStatistics tile_statistics(Tile<Element>& tile, const StatisticsRequest& request,
                                                          int lane) {
  const TileMaximum maximum = take_maximum(tile, lane, request.second);
  const float reference = maximum.value == -kInfinity ? 0.0f : maximum.value;
  if (!request.tempered) {
    const TileSums sums = sum_exponentials<true, false, kMoment, false>(tile, reference, kLog2E);
    return {maximum, sums.raw, sums.raw, sums.moment};
  }
  const float scale = exponent_scale(request.temperature);
  if (kMoment && request.tempered_moment) {
    const TileSums sums = sum_exponentials<true, true, kMoment, true>(tile, reference, scale);
    return {maximum, sums.raw, sums.tempered, sums.moment * (scale * kLn2)};
  }
  const TileSums sums = sum_exponentials<true, true, kMoment, false>(tile, reference, scale);
  return {maximum, sums.raw, sums.tempered, sums.moment};
}

}  // namespace mdlm_fast::cuda
