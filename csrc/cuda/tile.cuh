// A canonical tile of a row of logits, held in the registers of one warp.
//
// A tile is 2048 columns. Lane l holds, as vector v, the kPerVector columns from (32 v + l) kPerVector on, in the type
// of storage, two to a word where that has 16 bits. The layout depends on nothing but the type, so a sum over a tile
// has one order wherever the row lies. Columns that do not exist or do not count hold -inf.
#pragma once

#include "memory.cuh"

namespace mdlm_fast::cuda {

template <class Element>
struct Tile {
  static constexpr int kPerVector = 16 / static_cast<int>(sizeof(Element));
  static constexpr int kVectors = kTileColumns / (kWarpSize * kPerVector);
  Vector vectors[kVectors];

  __device__ __forceinline__ static int column(int vector, int lane) {
    return (vector * kWarpSize + lane) * kPerVector;
  }
};

template <class Element>
inline constexpr std::uint32_t kMinusInfinityBits = 0xff800000u;
template <>
inline constexpr std::uint32_t kMinusInfinityBits<bfloat16> = 0xff80u;
template <>
inline constexpr std::uint32_t kMinusInfinityBits<float16> = 0xfc00u;

// Number i of the numbers in a word or a vector, the first in the lowest bits. `i` is known at compile time.
template <class Element>
__device__ __forceinline__ float number(std::uint32_t word, int i) {
  if constexpr (sizeof(Element) == 4)
    return as_float(word);
  else if constexpr (std::is_same_v<Element, bfloat16>)
    return as_float(i == 0 ? word << 16 : word & 0xffff0000u);
  else
    return widen(float16{static_cast<std::uint16_t>(word >> 16 * i)});
}

template <class Element>
__device__ __forceinline__ float number(const Vector& vector, int i) {
  constexpr int kPerWord = 4 / sizeof(Element);
  return number<Element>(vector.words[i / kPerWord], i % kPerWord);
}

// The word with number i, which need not be known at compile time, replaced.
template <class Element>
__device__ __forceinline__ std::uint32_t with_number(std::uint32_t word, int i, std::uint32_t bits) {
  if constexpr (sizeof(Element) == 4) return bits;
  return (word & ~(0xffffu << 16 * i)) | bits << 16 * i;
}

template <class Element>
__device__ __forceinline__ void set_number(Vector& vector, int i, std::uint32_t bits) {
  constexpr int kPerWord = 4 / sizeof(Element);
  vector.words[i / kPerWord] = with_number<Element>(vector.words[i / kPerWord], i % kPerWord, bits);
}

template <class Element>
__device__ __forceinline__ std::uint32_t bits_of(Element x) {
  if constexpr (sizeof(Element) == 4)
    return as_bits(x);
  else
    return x.bits;
}

template <class Element>
__device__ __forceinline__ Vector minus_infinities() {
  constexpr std::uint32_t kBits = kMinusInfinityBits<Element>;
  constexpr std::uint32_t kWord = sizeof(Element) == 4 ? kBits : kBits | kBits << 16;
  return {{kWord, kWord, kWord, kWord}};
}

// Runs body with the integral constant that equals `vector`, which all lanes agree on.
template <int kFirst, int kEnd, class Body>
__device__ __forceinline__ void at_vector(unsigned vector, Body&& body) {
  constexpr int kMiddle = (kFirst + kEnd) / 2;
  if constexpr (kEnd - kFirst == 1)
    body(std::integral_constant<int, kFirst>{});
  else if (vector < kMiddle)
    at_vector<kFirst, kMiddle>(vector, body);
  else
    at_vector<kMiddle, kEnd>(vector, body);
}

// The tile whose first column is at `columns`, 16-byte aligned, of which `count` exist. All vectors are asked for
// before any is used.
template <class Element>
__device__ __forceinline__ void load_tile(Tile<Element>& tile, const Element* columns, int count, int lane) {
  using Registers = Tile<Element>;
  const Element* mine = anchored(columns + Registers::column(0, lane));
  if (count == kTileColumns) {
#pragma unroll
    for (int v = 0; v < Registers::kVectors; ++v) tile.vectors[v] = load_vector(mine + Registers::column(v, 0));
    return;
  }
#pragma unroll
  for (int v = 0; v < Registers::kVectors; ++v)
    if (Registers::column(v, lane) + Registers::kPerVector <= count)
      tile.vectors[v] = load_vector(mine + Registers::column(v, 0));
    else
      tile.vectors[v] = minus_infinities<Element>();
  const unsigned rest = static_cast<unsigned>(count) % Registers::kPerVector;
  if (rest == 0) return;
  Vector partial = minus_infinities<Element>();  // the last vector of the row: only some of its columns exist
#pragma unroll
  for (unsigned i = 0; i < Registers::kPerVector - 1; ++i)
    if (i < rest) set_number<Element>(partial, i, bits_of(load_constant(columns + count - rest + i)));
  const unsigned place = static_cast<unsigned>(count) / Registers::kPerVector;
  at_vector<0, Registers::kVectors>(place / kWarpSize, [&](auto v) {
    if (lane == static_cast<int>(place % kWarpSize)) tile.vectors[decltype(v)::value] = partial;
  });
}

// The same from any address.
template <class Element>
__device__ __forceinline__ void load_unaligned_tile(Tile<Element>& tile, const Element* columns, int count, int lane) {
  using Registers = Tile<Element>;
  const Element* mine = anchored(columns + Registers::column(0, lane));
  const int left = count - Registers::column(0, lane);
#pragma unroll
  for (int v = 0; v < Registers::kVectors; ++v) {
    tile.vectors[v] = minus_infinities<Element>();
#pragma unroll
    for (int i = 0; i < Registers::kPerVector; ++i)
      if (Registers::column(v, 0) + i < left)
        set_number<Element>(tile.vectors[v], i, bits_of(load_constant(mine + Registers::column(v, 0) + i)));
  }
}

// What guidance makes of logits z and g: `own` z - `other` g in fp32, products rounded as the reference rounds them. An
// id at -inf stays there: -inf - (-inf) would refuse the row for NaN.
struct Guidance {
  float own, other;  // s + 1 and s, rounded
  __device__ __forceinline__ float operator()(float z, float g) const {
    return z == -kInfinity ? z : rounded_product(own, z) - rounded_product(other, g);
  }
};

// The tile of guided logits; `columns` and `guidance` may lie anywhere. Four vectors at a time, for less code.
template <class Element>
__device__ __forceinline__ void load_guided_tile(Tile<float>& tile, const Element* columns, const Element* guidance,
                                                 Guidance guided, int count, int lane) {
  using Registers = Tile<float>;
  constexpr int kAtOnce = 4, kGroups = Registers::kVectors / kAtOnce;
#pragma unroll 1
  for (int group = 0; group < kGroups; ++group) {
    const int first = Registers::column(group * kAtOnce, lane);
    Vector vectors[kAtOnce];
#pragma unroll
    for (int v = 0; v < kAtOnce; ++v)
#pragma unroll
      for (int i = 0; i < Registers::kPerVector; ++i) {
        const int column = first + Registers::column(v, 0) + i;
        float z = -kInfinity;
        if (column < count) z = guided(widen(load_constant(columns + column)), widen(load_constant(guidance + column)));
        vectors[v].words[i] = as_bits(z);
      }
    at_vector<0, kGroups>(group, [&](auto g) {
#pragma unroll
      for (int v = 0; v < kAtOnce; ++v) tile.vectors[decltype(g)::value * kAtOnce + v] = vectors[v];
    });
  }
}

// Which ids are no candidates: those of a list, in any order and perhaps repeated, and those at or above a limit.
struct Exclusion {
  const std::int64_t* forbidden;  // [num_forbidden], global ids
  int num_forbidden;
  int vocab_limit;
};

// Which numbers of a tile are no candidates.
struct ExcludedNumbers {
  bool any;            // the same in all lanes
  std::uint64_t mask;  // the lane's: bit v kPerVector + i for number i of vector v
};

// `first_id` is the global id of the tile's first column. Costs a few instructions where the tile has none.
template <class Registers>
__device__ __forceinline__ ExcludedNumbers excluded_numbers(const Exclusion& exclusion, int first_id, int count,
                                                            int lane) {
  ExcludedNumbers excluded{first_id + count > exclusion.vocab_limit, 0};
  if (excluded.any)
#pragma unroll 1
    for (int n = 0; n < Registers::kVectors * Registers::kPerVector; ++n) {
      const int column = Registers::column(n / Registers::kPerVector, lane) + n % Registers::kPerVector;
      if (first_id + column >= exclusion.vocab_limit) excluded.mask |= std::uint64_t{1} << n;
    }
#pragma unroll 1
  for (int k = 0; k < exclusion.num_forbidden; k += kWarpSize) {
    std::uint64_t column = kTileColumns;
    if (k + lane < exclusion.num_forbidden)
      column = static_cast<std::uint64_t>(load_constant(exclusion.forbidden + k + lane)) - first_id;
    unsigned found = __ballot_sync(kFullWarp, column < kTileColumns);
#pragma unroll 1
    for (; found != 0; found &= found - 1) {
      const unsigned c = __shfl_sync(kFullWarp, static_cast<unsigned>(column), __ffs(static_cast<int>(found)) - 1);
      const unsigned place = c / Registers::kPerVector;
      if (static_cast<int>(place % kWarpSize) == lane)
        excluded.mask |= std::uint64_t{1} << (place / kWarpSize * Registers::kPerVector + c % Registers::kPerVector);
      excluded.any = true;
    }
  }
  return excluded;
}

// Puts -inf where remove(z, excluded) says so; `excluded` is the number's bit of the mask.
template <class Element, class Remove>
__device__ __forceinline__ void remove_numbers(Tile<Element>& tile, std::uint64_t mask, Remove&& remove) {
  using Registers = Tile<Element>;
#pragma unroll
  for (int v = 0; v < Registers::kVectors; ++v)
#pragma unroll
    for (int i = 0; i < Registers::kPerVector; ++i)
      if (remove(number<Element>(tile.vectors[v], i), (mask >> (v * Registers::kPerVector + i) & 1) != 0))
        set_number<Element>(tile.vectors[v], i, kMinusInfinityBits<Element>);
}

}  // namespace mdlm_fast::cuda
