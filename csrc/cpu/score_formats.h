// How a tile's elements are read: float32, bfloat16 and float16, over the vector types of simd_*.h.
#pragma once

#include "score_kernels.h"

namespace mdlm_fast::MDLM_ISA {
namespace {

using cpu::kBlockColumns;

constexpr float kInfinity = __builtin_inff();

struct Maximum {
  float value;
  bool nan;  // complete only where asked for; the sums find the others
};

// A tile whose block at `hole_at` is read from a copy instead.
template <class Element>
struct Tile {
  const Element* data;
  int n;
  const Element* hole = nullptr;
  int hole_at = -1;
  MDLM_INLINE const Element* block(int i) const { return i == hole_at ? hole : data + i; }
};

struct Float32 {
  using Element = float;
  static constexpr Element kMinusInfinity = -kInfinity;

  static MDLM_INLINE void load_half(const Element* p, Floats& x, Floats& y) {
    x = load(p);
    y = load(p + 16);
  }

  template <bool kCheckNan>
  static MDLM_INLINE Maximum maximum_of(const Tile<Element>& tile) {
    Floats first[4];
    Mask nan = is_nan(splat(0));
    for (int k = 0; k < 4; ++k) first[k] = splat(-kInfinity);
    for (int i = 0; i < tile.n; i += kBlockColumns) {
      const Element* p = tile.block(i);
      for (int k = 0; k < 4; ++k) {
        const Floats x = load(p + 16 * k);
        if constexpr (kCheckNan) nan = any_of(nan, is_nan(x));
        first[k] = maximum(x, first[k]);  // a NaN gives way: the second argument is returned
      }
    }
    const Floats largest = maximum(maximum(first[0], first[2]), maximum(first[1], first[3]));
    return {reduce_max(largest), kCheckNan && any(nan)};
  }

  static MDLM_INLINE Mask matches(const Element* p, float max) {
    const Floats wanted = splat(max);
    return any_of(any_of(equal(load(p), wanted), equal(load(p + 16), wanted)),
                  any_of(equal(load(p + 32), wanted), equal(load(p + 48), wanted)));
  }
  static MDLM_INLINE std::uint64_t match_columns(const Element* p, float max) {
    std::uint64_t where = 0;
    for (int k = 0; k < 4; ++k)
      where |= static_cast<std::uint64_t>(bits(equal(load(p + 16 * k), splat(max)))) << (16 * k);
    return where;
  }
};

// bfloat16 and float16 order alike as sign-magnitude numbers, so both are compared as 32 sixteen-bit words at a time.
template <class Format>
struct SixteenBits {
  using Element = std::uint16_t;
  static constexpr Element kMinusInfinity = 0x8000 | Format::kInfinityBits;

  static MDLM_INLINE void load_half(const Element* p, Floats& x, Floats& y) { Format::load_half(p, x, y); }

  static MDLM_INLINE float value(std::int16_t key) {
    return Format::to_float(static_cast<std::uint16_t>(key ^ ((key >> 15) & 0x7fff)));
  }

  // As signed words, numbers without a sign bit are in order and above all others, so the first loop decides unless
  // the tile is negative throughout. As unsigned words, NaNs with a sign bit are the only ones above -inf.
  template <bool kCheckNan>
  static MDLM_INLINE Maximum maximum_of(const Tile<Element>& tile) {
    Words first[2] = {splat_words(0x8000), splat_words(0x8000)}, unsigned_first[2] = {splat_words(0), splat_words(0)};
    for (int i = 0; i < tile.n; i += kBlockColumns) {
      const Element* p = tile.block(i);
      for (int k = 0; k < 2; ++k) {
        const Words x = load_words(p + 32 * k);
        if constexpr (kCheckNan) unsigned_first[k] = maximum_unsigned(unsigned_first[k], x);
        first[k] = maximum(first[k], x);
      }
    }
    std::int16_t max = reduce_max(maximum(first[0], first[1]));
    if (max < 0) max = maximum_of_negative(tile);
    bool nan = max > Format::kInfinityBits;
    if constexpr (kCheckNan) {
      const Words flip = splat_words(0x8000), largest = maximum_unsigned(unsigned_first[0], unsigned_first[1]);
      nan = nan || (reduce_max(exclusive_or(largest, flip)) ^ 0x8000) > (0x8000 | Format::kInfinityBits);
    }
    return {value(max), nan};
  }

  static __attribute__((noinline)) std::int16_t maximum_of_negative(const Tile<Element>& tile) {
    Words first[2] = {splat_words(0x8000), splat_words(0x8000)};
    for (int i = 0; i < tile.n; i += kBlockColumns)
      for (int k = 0; k < 2; ++k) first[k] = maximum(first[k], ordered(load_words(tile.block(i) + 32 * k)));
    return reduce_max(maximum(first[0], first[1]));
  }

  static MDLM_INLINE WordMask matches(const Element* p, float max) {
    const Words wanted = splat_words(Format::from_float(max));
    return any_of(equal(load_words(p), wanted), equal(load_words(p + 32), wanted));
  }
  static MDLM_INLINE std::uint64_t match_columns(const Element* p, float max) {
    const Words wanted = splat_words(Format::from_float(max));
    return static_cast<std::uint64_t>(bits(equal(load_words(p), wanted))) |
           static_cast<std::uint64_t>(bits(equal(load_words(p + 32), wanted))) << 32;
  }
};

struct BFloat16Format {
  static constexpr std::uint16_t kInfinityBits = 0x7f80;
  static MDLM_INLINE void load_half(const std::uint16_t* p, Floats& x, Floats& y) { widen_bf16(p, x, y); }
  static MDLM_INLINE float to_float(std::uint16_t word) {
    const std::uint32_t wide = static_cast<std::uint32_t>(word) << 16;
    float result;
    __builtin_memcpy(&result, &wide, 4);
    return result;
  }
  static MDLM_INLINE std::uint16_t from_float(float x) {
    std::uint32_t wide;
    __builtin_memcpy(&wide, &x, 4);
    return static_cast<std::uint16_t>(wide >> 16);
  }
};

struct Float16Format {
  static constexpr std::uint16_t kInfinityBits = 0x7c00;
  static MDLM_INLINE void load_half(const std::uint16_t* p, Floats& x, Floats& y) {
    x = load_f16(p);
    y = load_f16(p + 16);
  }
  static MDLM_INLINE float to_float(std::uint16_t word) {
    const std::uint32_t sign = static_cast<std::uint32_t>(word & 0x8000) << 16, rest = word & 0x7fff;
    std::uint32_t wide = rest << 13;
    float result;
    __builtin_memcpy(&result, &wide, 4);
    result *= 0x1p112f;  // the exponent bias, for normal and subnormal numbers
    __builtin_memcpy(&wide, &result, 4);
    wide = sign | (rest >= kInfinityBits ? (rest << 13) | 0x7f800000u : wide);
    __builtin_memcpy(&result, &wide, 4);
    return result;
  }
  // Of a float that came from to_float.
  static MDLM_INLINE std::uint16_t from_float(float x) {
    std::uint32_t wide;
    __builtin_memcpy(&wide, &x, 4);
    const std::uint16_t sign = static_cast<std::uint16_t>(wide >> 16 & 0x8000);
    const std::uint32_t rest = wide & 0x7fffffffu;
    if (rest == 0x7f800000u) return sign | kInfinityBits;
    float scaled;
    __builtin_memcpy(&scaled, &rest, 4);
    scaled *= 0x1p-112f;
    __builtin_memcpy(&wide, &scaled, 4);
    return sign | static_cast<std::uint16_t>(wide >> 13);
  }
};

using BFloat16 = SixteenBits<BFloat16Format>;
using Float16 = SixteenBits<Float16Format>;

}  // namespace
}  // namespace mdlm_fast::MDLM_ISA
