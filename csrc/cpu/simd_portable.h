// The vector types of simd_avx512.h in plain C++, for any processor; the compiler vectorises the loops as it can.
#pragma once

#include <bit>
#include <cstdint>

#define MDLM_INLINE inline __attribute__((always_inline))

namespace mdlm_fast::MDLM_ISA {

// Both halves of a 64-column block in one loop.
constexpr int kHalvesAtOnce = 2;
constexpr bool kOneKernel = true;

struct Mask {
  std::uint32_t lane[16];  // 0 or ~0
};

struct Floats {
  float lane[16];
};

template <class Result = Floats, class F>
MDLM_INLINE Result lanewise(F f) {
  Result r;
  for (int i = 0; i < 16; ++i) r.lane[i] = f(i);
  return r;
}

// a * b + c rounded once, without hardware: the product is exact in double; the sum is rounded to odd there (its last
// bit is set when it is inexact), so that rounding it again to float gives what one rounding would have given.
MDLM_INLINE float fused_scalar(float a, float b, float c) {
#ifdef __FP_FAST_FMAF
  return __builtin_fmaf(a, b, c);
#else
  const double product = static_cast<double>(a) * b, addend = c, sum = product + addend;
  const double kept = sum - product, error = (product - (sum - kept)) + (addend - kept);
  const std::int64_t sum_bits = std::bit_cast<std::int64_t>(sum);
  const bool inexact = error > 0 || error < 0;
  const std::int64_t away = (error > 0) == (sum > 0) ? 1 : -1;
  const std::int64_t odd = sum_bits + ((inexact && !(sum_bits & 1)) ? away : 0);
  return static_cast<float>(std::bit_cast<double>(odd));
#endif
}

MDLM_INLINE Floats splat(float x) { return lanewise([&](int) { return x; }); }
MDLM_INLINE Floats load(const float* p) { return lanewise([&](int i) { return p[i]; }); }
MDLM_INLINE void store(float* p, Floats x) {
  for (int i = 0; i < 16; ++i) p[i] = x.lane[i];
}
MDLM_INLINE Floats operator+(Floats x, Floats y) { return lanewise([&](int i) { return x.lane[i] + y.lane[i]; }); }
MDLM_INLINE Floats operator-(Floats x, Floats y) { return lanewise([&](int i) { return x.lane[i] - y.lane[i]; }); }
MDLM_INLINE Floats operator*(Floats x, Floats y) { return lanewise([&](int i) { return x.lane[i] * y.lane[i]; }); }
MDLM_INLINE Floats fused(Floats x, Floats y, Floats z) {
  return lanewise([&](int i) { return fused_scalar(x.lane[i], y.lane[i], z.lane[i]); });
}
MDLM_INLINE Floats fused_minus(Floats x, Floats y, Floats z) {
  return lanewise([&](int i) { return fused_scalar(x.lane[i], y.lane[i], -z.lane[i]); });
}
MDLM_INLINE Floats maximum(Floats x, Floats y) {
  return lanewise([&](int i) { return x.lane[i] > y.lane[i] ? x.lane[i] : y.lane[i]; });
}
MDLM_INLINE Floats minimum(Floats x, Floats y) {
  return lanewise([&](int i) { return x.lane[i] < y.lane[i] ? x.lane[i] : y.lane[i]; });
}

MDLM_INLINE Mask not_below(Floats x, Floats y) {
  return lanewise<Mask>([&](int i) { return x.lane[i] < y.lane[i] ? 0u : ~0u; });
}
MDLM_INLINE Mask equal(Floats x, Floats y) {
  return lanewise<Mask>([&](int i) { return x.lane[i] == y.lane[i] ? ~0u : 0u; });
}
MDLM_INLINE Mask is_nan(Floats x) {
  return lanewise<Mask>([&](int i) { return x.lane[i] != x.lane[i] ? ~0u : 0u; });
}
MDLM_INLINE unsigned bits(Mask mask) {
  unsigned result = 0;
  for (int i = 0; i < 16; ++i) result |= (mask.lane[i] & 1u) << i;
  return result;
}
MDLM_INLINE Mask any_of(Mask x, Mask y) {
  return lanewise<Mask>([&](int i) { return x.lane[i] | y.lane[i]; });
}
MDLM_INLINE Floats select(Mask mask, Floats yes, Floats no) {
  return lanewise([&](int i) { return mask.lane[i] ? yes.lane[i] : no.lane[i]; });
}
MDLM_INLINE Floats fused_or_zero(Mask mask, Floats x, Floats y, Floats z) {
  return lanewise([&](int i) { return mask.lane[i] ? fused_scalar(x.lane[i], y.lane[i], z.lane[i]) : 0.0f; });
}
MDLM_INLINE Floats clamp_below(Floats x, Floats least) {
  return lanewise([&](int i) { return x.lane[i] < least.lane[i] ? least.lane[i] : x.lane[i]; });
}
MDLM_INLINE Floats fused_where(Mask, Floats x, Floats y, Floats z) { return fused(x, y, z); }

struct ExpTable {
  const std::int32_t* entries;
  MDLM_INLINE explicit ExpTable(const std::int32_t* p) : entries(p) {}
  MDLM_INLINE Floats operator()(Floats t) const {
    return lanewise([&](int i) {
      const std::uint32_t n = std::bit_cast<std::uint32_t>(t.lane[i]);
      return std::bit_cast<float>(static_cast<std::uint32_t>(entries[n & 31]) + (n << 18));
    });
  }
};

MDLM_INLINE float reduce_max(Floats x) {
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) x.lane[i] = x.lane[i] > x.lane[i + width] ? x.lane[i] : x.lane[i + width];
  return x.lane[0];
}

MDLM_INLINE float reduce_add(Floats x) {
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) x.lane[i] += x.lane[i + width];
  return x.lane[0];
}

struct Words {
  std::int16_t lane[32];
};

template <class F>
MDLM_INLINE Words wordwise(F f) {
  Words r;
  for (int i = 0; i < 32; ++i) r.lane[i] = static_cast<std::int16_t>(f(i));
  return r;
}

MDLM_INLINE Words load_words(const std::uint16_t* p) { return wordwise([&](int i) { return p[i]; }); }
MDLM_INLINE Words splat_words(std::uint16_t x) { return wordwise([&](int) { return x; }); }
MDLM_INLINE Words ordered(Words x) {
  return wordwise([&](int i) { return x.lane[i] ^ ((x.lane[i] >> 15) & 0x7fff); });
}
MDLM_INLINE Words magnitude(Words x) { return wordwise([&](int i) { return x.lane[i] & 0x7fff; }); }
MDLM_INLINE Words maximum(Words x, Words y) {
  return wordwise([&](int i) { return x.lane[i] > y.lane[i] ? x.lane[i] : y.lane[i]; });
}
MDLM_INLINE Words minimum(Words x, Words y) {
  return wordwise([&](int i) { return x.lane[i] < y.lane[i] ? x.lane[i] : y.lane[i]; });
}
using WordMask = Words;
MDLM_INLINE WordMask equal(Words x, Words y) {
  return wordwise([&](int i) { return x.lane[i] == y.lane[i] ? -1 : 0; });
}
MDLM_INLINE std::uint32_t bits(WordMask mask) {
  std::uint32_t result = 0;
  for (int i = 0; i < 32; ++i) result |= (mask.lane[i] & 1u) << i;
  return result;
}
MDLM_INLINE WordMask any_of(WordMask x, WordMask y) {
  return wordwise([&](int i) { return x.lane[i] | y.lane[i]; });
}
MDLM_INLINE Words select(WordMask mask, Words yes, Words no) {
  return wordwise([&](int i) { return mask.lane[i] ? yes.lane[i] : no.lane[i]; });
}
MDLM_INLINE std::int16_t reduce_max(Words x) {
  std::int16_t result = x.lane[0];
  for (int i = 1; i < 32; ++i) result = x.lane[i] > result ? x.lane[i] : result;
  return result;
}

MDLM_INLINE void widen_bf16(const std::uint16_t* p, Floats& even, Floats& odd) {
  even = lanewise([&](int i) { return std::bit_cast<float>(static_cast<std::uint32_t>(p[2 * i]) << 16); });
  odd = lanewise([&](int i) { return std::bit_cast<float>(static_cast<std::uint32_t>(p[2 * i + 1]) << 16); });
}
MDLM_INLINE float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
  // Shifted into place the exponent is 112 too small; the multiplication mends that for normal and subnormal numbers.
  const float scaled = std::bit_cast<float>(rest << 13) * 0x1p112f;
  const std::uint32_t number = rest >= 0x7c00u ? (rest << 13) | 0x7f800000u : std::bit_cast<std::uint32_t>(scaled);
  return std::bit_cast<float>(sign | number);
}
MDLM_INLINE Floats load_f16(const std::uint16_t* p) {
  return lanewise([&](int i) { return half_to_float(p[i]); });
}

MDLM_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace mdlm_fast::MDLM_ISA
