// The statistics of one tile (mdlm_fast/ops/reference/_tiles.py) by the warp that holds it.
//
// The maximum comes first, from packed comparisons; its place is then overwritten by -inf, so that the maximum's own 1
// enters no sum; one pass over the registers forms the sums against that fixed maximum, so nothing is rescaled.
//
// Order of a sum, which depends on nothing but the column: word k (0..3) of a lane's vectors has a sum of its own, over
// the vectors in order and the lower half first; the lane's sum is (s0 + s2) + (s1 + s3); lanes add up by pairs at
// distances 16, 8, 4, 2, 1, which gives every lane the same bits.
#pragma once

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

// The largest number of a word.
template <class Element>
__device__ __forceinline__ float largest_number(std::uint32_t word) {
  if constexpr (sizeof(Element) == 4) return as_float(word);
  return max_nan(number<Element>(word, 0), number<Element>(word, 1));
}

// The largest number over all lanes; NaN if there is one that has no sign, as max_nan leaves it. Signed integers whose
// magnitude is inverted where they are negative have the order of the numbers; which zero is found does not matter.
__device__ __forceinline__ float warp_maximum(float value) {
  const auto invert = [](std::int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); };
  const std::int32_t largest = __reduce_max_sync(kFullWarp, invert(static_cast<std::int32_t>(as_bits(value))));
  return as_float(static_cast<std::uint32_t>(invert(largest)));
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kFullWarp, x, distance);
  return x;
}

// The largest number of a tile and its place; all lanes hold the same.
struct TileMaximum {
  float value;   // NaN if any number is
  int vector;
  int lane;      // -1 if no number equals `value`
  int number;
  float second;  // largest of the others, if asked for

  template <class Registers>
  __device__ __forceinline__ int column() const {
    return Registers::column(vector, lane) + number;
  }
};

// Runs body with the integral constant of the first vector in which some lane has `value`, or of the last one if there
// is none. tree[n] is a lane's maximum over the vectors below node n, which has children 2 n and 2 n + 1; vector v is
// leaf kVectors + v. All lanes take the same way down.
template <class Element, int kNode = 1, class Body>
__device__ __forceinline__ void at_first_vector(const std::uint32_t (&tree)[2 * Tile<Element>::kVectors], float value,
                                                Body&& body) {
  if constexpr (kNode >= Tile<Element>::kVectors)
    body(std::integral_constant<int, kNode - Tile<Element>::kVectors>{});
  else if (__any_sync(kFullWarp, holds<Element>(tree[2 * kNode], value)))
    at_first_vector<Element, 2 * kNode>(tree, value, body);
  else
    at_first_vector<Element, 2 * kNode + 1>(tree, value, body);
}

// Finds the first of the largest numbers and puts -inf in its place.
template <class Element>
__device__ __forceinline__ TileMaximum take_maximum(Tile<Element>& tile, int lane, bool wants_second) {
  using Registers = Tile<Element>;
  std::uint32_t tree[2 * Registers::kVectors];  // of maxima, see at_first_vector
#pragma unroll
  for (int v = 0; v < Registers::kVectors; ++v) tree[Registers::kVectors + v] = larger_word<Element>(tile.vectors[v]);
#pragma unroll
  for (int n = Registers::kVectors - 1; n > 0; --n) tree[n] = larger_word<Element>(tree[2 * n], tree[2 * n + 1]);
  TileMaximum maximum{warp_maximum(largest_number<Element>(tree[1])), 0, -1, 0, -kInfinity};
  int found = 0;  // used in the lane that holds the maximum
  at_first_vector<Element>(tree, maximum.value, [&](auto v) {
    constexpr int kVector = decltype(v)::value;
    std::uint32_t& largest = tree[Registers::kVectors + kVector];
    maximum.vector = kVector;
    maximum.lane = __ffs(static_cast<int>(__ballot_sync(kFullWarp, holds<Element>(largest, maximum.value)))) - 1;
    Vector& vector = tile.vectors[kVector];
    std::uint32_t word = vector.words[3];
    int k = 3;
#pragma unroll
    for (int earlier = 2; earlier >= 0; --earlier)
      if (holds<Element>(vector.words[earlier], maximum.value)) {
        word = vector.words[earlier];
        k = earlier;
      }
    if constexpr (sizeof(Element) == 4) {
      word = kMinusInfinityBits<Element>;
      found = k;
    } else {
      const bool first = number<Element>(word, 0) == maximum.value;
      word = first ? with_number<Element>(word, 0, kMinusInfinityBits<Element>)
                   : with_number<Element>(word, 1, kMinusInfinityBits<Element>);
      found = first ? 2 * k : 2 * k + 1;
    }
    k = lane == maximum.lane ? k : -1;
#pragma unroll
    for (int i = 0; i < 4; ++i) vector.words[i] = i == k ? word : vector.words[i];
    largest = larger_word<Element>(vector);
  });
  maximum.number = __shfl_sync(kFullWarp, found, maximum.lane & (kWarpSize - 1));
  if (wants_second) {
    std::uint32_t word = tree[Registers::kVectors];
#pragma unroll
    for (int v = 1; v < Registers::kVectors; ++v) word = larger_word<Element>(word, tree[Registers::kVectors + v]);
    maximum.second = warp_maximum(largest_number<Element>(word));
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

// A maximum to subtract: a tile of -inf alone has sums of 0, not NaN.
__device__ __forceinline__ float finite(float maximum) { return maximum == -kInfinity ? 0.0f : maximum; }

// All statistics of a tile, whose maximum is taken out. Without kMoment the moment is 0.
template <bool kMoment, class Element>
__device__ __forceinline__ TileStatistics tile_statistics(Tile<Element>& tile, const StatisticsRequest& request,
                                                          int lane) {
  const TileMaximum maximum = take_maximum(tile, lane, request.second);
  const float reference = finite(maximum.value);
  if (!request.tempered) {
    const TileSums sums = sum_exponentials<true, false, kMoment, false>(tile, reference, kLog2E);
    return {maximum, sums.raw, sums.raw, sums.moment};
  }
  const float scale = exponent_scale(request.temperature);
  if (kMoment && request.tempered_moment) {
    const TileSums sums = sum_exponentials<true, true, kMoment, true>(tile, reference, scale);
    return {maximum, sums.raw, sums.tempered, sums.moment / request.temperature};
  }
  const TileSums sums = sum_exponentials<true, true, kMoment, false>(tile, reference, scale);
  return {maximum, sums.raw, sums.tempered, sums.moment};
}

// Those of the tempered distribution alone, with the same bits; `rest` is the tempered one.
template <class Element>
__device__ __forceinline__ TileStatistics tempered_statistics(Tile<Element>& tile, float temperature, int lane) {
  const TileMaximum maximum = take_maximum(tile, lane, true);
  const float reference = finite(maximum.value), scale = exponent_scale(temperature);
  const TileSums sums = sum_exponentials<false, true, true, true>(tile, reference, scale);
  return {maximum, sums.tempered, sums.tempered, sums.moment / temperature};
}

}  // namespace mdlm_fast::cuda
