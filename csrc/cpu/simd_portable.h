// The vector types of simd_avx512.h for any processor, on the compiler's own vectors (GCC, Clang).
#pragma once

#include <cstdint>
#include <cstring>

#define MDLM_INLINE inline __attribute__((always_inline))
#pragma GCC diagnostic ignored "-Wpsabi"  // nothing here is called across a library boundary

namespace mdlm_fast::MDLM_ISA {

// Few registers: half a 64-column block at a time, as on AVX2.
constexpr int kHalvesAtOnce = 1;
constexpr bool kFewKernels = true;

// Four lanes, which every processor with vectors has.
using F32x4 = float __attribute__((vector_size(16)));
using I32x4 = std::int32_t __attribute__((vector_size(16)));
using U32x4 = std::uint32_t __attribute__((vector_size(16)));
using I16x8 = std::int16_t __attribute__((vector_size(16)));
using F32x2 = float __attribute__((vector_size(8)));
using F64x2 = double __attribute__((vector_size(16)));
using I64x2 = std::int64_t __attribute__((vector_size(16)));

struct Mask {
  I32x4 v[4];  // lanes 0 or -1
};

struct Floats {
  F32x4 v[4];
};

template <class Result = Floats, class F>
MDLM_INLINE Result fours(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}

template <class Vector>
MDLM_INLINE Vector load_four(const void* p) {
  Vector r;
  std::memcpy(&r, p, sizeof(r));
  return r;
}

MDLM_INLINE Floats splat(float x) {
  const F32x4 v{x, x, x, x};
  return {{v, v, v, v}};
}
MDLM_INLINE Floats load(const float* p) {
  return fours([&](int i) { return load_four<F32x4>(p + 4 * i); });
}
MDLM_INLINE void store(float* p, Floats x) { std::memcpy(p, x.v, sizeof(x.v)); }
MDLM_INLINE Floats operator+(Floats x, Floats y) {
  return fours([&](int i) { return x.v[i] + y.v[i]; });
}
MDLM_INLINE Floats operator-(Floats x, Floats y) {
  return fours([&](int i) { return x.v[i] - y.v[i]; });
}
MDLM_INLINE Floats operator*(Floats x, Floats y) {
  return fours([&](int i) { return x.v[i] * y.v[i]; });
}

#ifdef __FP_FAST_FMAF
MDLM_INLINE F32x4 fused_four(F32x4 x, F32x4 y, F32x4 z) {
  F32x4 r;
  for (int i = 0; i < 4; ++i) r[i] = __builtin_fmaf(x[i], y[i], z[i]);
  return r;
}
#else
// x * y + z rounded once, without hardware for it: the product is exact in double; the sum is rounded to odd there (its
// last bit is set when it is inexact), so that rounding it again to float gives what one rounding would have given.
MDLM_INLINE F32x2 fused_two(F32x2 x, F32x2 y, F32x2 z) {
  const F64x2 product = __builtin_convertvector(x, F64x2) * __builtin_convertvector(y, F64x2);
  const F64x2 addend = __builtin_convertvector(z, F64x2), sum = product + addend, kept = sum - product;
  const F64x2 error = (product - (sum - kept)) + (addend - kept), zero{};
  const I64x2 above = error > zero, below = error < zero, positive = sum > zero, bits = (I64x2)sum;
  const I64x2 away = (~(above ^ positive) & 2) - 1;  // +1 where the exact sum is larger in magnitude, else -1
  const I64x2 even = (bits & 1) - 1;                 // all bits set, or none
  return __builtin_convertvector((F64x2)(bits + ((above | below) & even & away)), F32x2);
}
MDLM_INLINE F32x4 fused_four(F32x4 x, F32x4 y, F32x4 z) {
  F32x2 a[2], b[2], c[2];
  std::memcpy(a, &x, sizeof(x));
  std::memcpy(b, &y, sizeof(y));
  std::memcpy(c, &z, sizeof(z));
  const F32x2 r[2] = {fused_two(a[0], b[0], c[0]), fused_two(a[1], b[1], c[1])};
  return load_four<F32x4>(r);
}
#endif
MDLM_INLINE Floats fused(Floats x, Floats y, Floats z) {
  return fours([&](int i) { return fused_four(x.v[i], y.v[i], z.v[i]); });
}
MDLM_INLINE Floats fused_minus(Floats x, Floats y, Floats z) {
  return fours([&](int i) { return fused_four(x.v[i], y.v[i], -z.v[i]); });
}

MDLM_INLINE F32x4 select_four(I32x4 mask, F32x4 yes, F32x4 no) {
  return (F32x4)((mask & (I32x4)yes) | (~mask & (I32x4)no));
}
MDLM_INLINE Floats maximum(Floats x, Floats y) {
  return fours([&](int i) { return select_four(x.v[i] > y.v[i], x.v[i], y.v[i]); });
}
MDLM_INLINE Mask not_below(Floats x, Floats y) {
  return fours<Mask>([&](int i) -> I32x4 { return ~(x.v[i] < y.v[i]); });
}
MDLM_INLINE Mask equal(Floats x, Floats y) {
  return fours<Mask>([&](int i) -> I32x4 { return x.v[i] == y.v[i]; });
}
MDLM_INLINE Mask is_nan(Floats x) {
  return fours<Mask>([&](int i) -> I32x4 { return x.v[i] != x.v[i]; });
}
MDLM_INLINE unsigned bits(Mask mask) {
  unsigned result = 0;
  for (int i = 0; i < 16; ++i) result |= (mask.v[i / 4][i % 4] & 1u) << i;
  return result;
}
MDLM_INLINE bool any_bit(const void* p) {
  std::uint64_t words[8], result = 0;
  std::memcpy(words, p, sizeof(words));
  for (const std::uint64_t word : words) result |= word;
  return result != 0;
}
MDLM_INLINE bool any(Mask mask) { return any_bit(mask.v); }
MDLM_INLINE Mask any_of(Mask x, Mask y) {
  return fours<Mask>([&](int i) { return x.v[i] | y.v[i]; });
}
MDLM_INLINE Floats keep(Mask mask, Floats x) {
  return fours([&](int i) { return (F32x4)(mask.v[i] & (I32x4)x.v[i]); });
}
MDLM_INLINE Floats clamp_below(Floats x, Floats least) {
  return fours([&](int i) { return select_four(x.v[i] < least.v[i], least.v[i], x.v[i]); });
}
MDLM_INLINE Floats fused_where(Mask, Floats x, Floats y, Floats z) { return fused(x, y, z); }

struct ExpTable {
  const std::int32_t* entries;
  MDLM_INLINE explicit ExpTable(const std::int32_t* p) : entries(p) {}
  MDLM_INLINE Floats operator()(Floats t) const {
    return fours([&](int i) {
      const U32x4 n = (U32x4)t.v[i];
      const I32x4 entry{entries[n[0] & 31], entries[n[1] & 31], entries[n[2] & 31], entries[n[3] & 31]};
      return (F32x4)((U32x4)entry + (n << 18));
    });
  }
};

MDLM_INLINE float reduce_max(Floats x) {
  float result = x.v[0][0];
  for (int i = 1; i < 16; ++i) result = x.v[i / 4][i % 4] > result ? x.v[i / 4][i % 4] : result;
  return result;
}

MDLM_INLINE float reduce_add(Floats x) {
  const F32x4 r = (x.v[0] + x.v[2]) + (x.v[1] + x.v[3]);
  return (r[0] + r[2]) + (r[1] + r[3]);
}

struct Words {
  I16x8 v[4];
};
using WordMask = Words;

MDLM_INLINE Words load_words(const std::uint16_t* p) {
  return fours<Words>([&](int i) { return load_four<I16x8>(p + 8 * i); });
}
MDLM_INLINE Words splat_words(std::uint16_t x) {
  const std::int16_t w = static_cast<std::int16_t>(x);
  return fours<Words>([&](int) { return I16x8{w, w, w, w, w, w, w, w}; });
}
MDLM_INLINE Words exclusive_or(Words x, Words y) {
  return fours<Words>([&](int i) { return x.v[i] ^ y.v[i]; });
}
MDLM_INLINE Words ordered(Words x) {
  return fours<Words>([&](int i) { return x.v[i] ^ ((x.v[i] >> 15) & std::int16_t{0x7fff}); });
}
MDLM_INLINE Words maximum(Words x, Words y) {
  return fours<Words>([&](int i) {
    const I16x8 above = x.v[i] > y.v[i];
    return (above & x.v[i]) | (~above & y.v[i]);
  });
}
MDLM_INLINE Words maximum_unsigned(Words x, Words y) {
  const Words flip = splat_words(0x8000);
  return exclusive_or(maximum(exclusive_or(x, flip), exclusive_or(y, flip)), flip);
}
MDLM_INLINE WordMask equal(Words x, Words y) {
  return fours<Words>([&](int i) -> I16x8 { return x.v[i] == y.v[i]; });
}
MDLM_INLINE std::uint32_t bits(WordMask mask) {
  std::uint32_t result = 0;
  for (int i = 0; i < 32; ++i) result |= (static_cast<std::uint32_t>(mask.v[i / 8][i % 8]) & 1u) << i;
  return result;
}
MDLM_INLINE bool any(WordMask mask) { return any_bit(mask.v); }
MDLM_INLINE WordMask any_of(WordMask x, WordMask y) {
  return fours<Words>([&](int i) { return x.v[i] | y.v[i]; });
}
MDLM_INLINE std::int16_t reduce_max(Words x) {
  std::int16_t result = x.v[0][0];
  for (int i = 1; i < 32; ++i) result = x.v[i / 8][i % 8] > result ? x.v[i / 8][i % 8] : result;
  return result;
}

MDLM_INLINE void widen_bf16(const std::uint16_t* p, Floats& even, Floats& odd) {
  const Floats low = fours([&](int i) { return (F32x4)(load_four<U32x4>(p + 8 * i) << 16); });
  const Floats high = fours([&](int i) { return (F32x4)(load_four<U32x4>(p + 8 * i) & 0xffff0000u); });
  const bool little_endian = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
  even = little_endian ? low : high;
  odd = little_endian ? high : low;
}
MDLM_INLINE Floats load_f16(const std::uint16_t* p) {
  return fours([&](int i) {
    const U32x4 word{p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]}, rest = word & 0x7fffu;
    // Shifted into place the exponent is 112 too small; the multiplication mends normal and subnormal numbers.
    const F32x4 number = (F32x4)(rest << 13) * 0x1p112f, special = (F32x4)((rest << 13) | 0x7f800000u);
    return (F32x4)(((word & 0x8000u) << 16) | (U32x4)select_four((I32x4)rest >= 0x7c00, special, number));
  });
}

MDLM_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace mdlm_fast::MDLM_ISA
