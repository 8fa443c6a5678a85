// 16 floats or 32 sixteen-bit keys in one register: the vector types of the kernels on AVX-512.
// simd_avx2.h and simd_portable.h define the same names with the same results bit for bit.
#pragma once

#include <cstdint>
#include <immintrin.h>

#define MDLM_INLINE inline __attribute__((always_inline))

namespace mdlm_fast::MDLM_ISA {

// Both halves of a 64-column block keep their sums in registers at once.
constexpr int kHalvesAtOnce = 2;
constexpr bool kFewKernels = false;

using Mask = __mmask16;

struct Floats {
  __m512 v;
};

MDLM_INLINE Floats splat(float x) { return {_mm512_set1_ps(x)}; }
MDLM_INLINE Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
MDLM_INLINE void store(float* p, Floats a) { _mm512_storeu_ps(p, a.v); }
MDLM_INLINE Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
MDLM_INLINE Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
MDLM_INLINE Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
// a * b + c, rounded once.
MDLM_INLINE Floats fused(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// a * b - c, rounded once.
MDLM_INLINE Floats fused_minus(Floats a, Floats b, Floats c) { return {_mm512_fmsub_ps(a.v, b.v, c.v)}; }
// The second argument where either is NaN, or both are zeros.
MDLM_INLINE Floats maximum(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }

// Lanes where a >= b or either is NaN.
MDLM_INLINE Mask not_below(Floats a, Floats b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ); }
MDLM_INLINE Mask equal(Floats a, Floats b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
MDLM_INLINE Mask is_nan(Floats a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q); }
MDLM_INLINE unsigned bits(Mask mask) { return mask; }
MDLM_INLINE bool any(Mask mask) { return mask != 0; }
MDLM_INLINE Mask any_of(Mask a, Mask b) { return a | b; }
// What `fused_where` will pass over need not be cleared here.
MDLM_INLINE Floats keep(Mask, Floats a) { return a; }
// Nor held in range: no lane traps.
MDLM_INLINE Floats clamp_below(Floats a, Floats) { return a; }
// c + a * b where the mask is set, c elsewhere.
MDLM_INLINE Floats fused_where(Mask mask, Floats a, Floats b, Floats c) {
  return {_mm512_mask3_fmadd_ps(a.v, b.v, c.v, mask)};
}

// 2^(n/32) for whole n = (the low bits of t, a float at 1.5 * 2^23 + n): a table entry with n << 18 added to its bits.
struct ExpTable {
  __m512i low, high;
  MDLM_INLINE explicit ExpTable(const std::int32_t* entries)
      : low(_mm512_loadu_si512(entries)), high(_mm512_loadu_si512(entries + 16)) {}
  MDLM_INLINE Floats operator()(Floats t) const {
    const __m512i n = _mm512_castps_si512(t.v);
    const __m512i entry = _mm512_permutex2var_epi32(low, n, high);
    return {_mm512_castsi512_ps(_mm512_add_epi32(entry, _mm512_slli_epi32(n, 18)))};
  }
};

MDLM_INLINE float reduce_max(Floats a) {
  const __m256 b = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}

// Lane i with lane i + 8, then + 4, + 2, + 1.
MDLM_INLINE float reduce_add(Floats a) {
  const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}

// 32 sixteen-bit words.
struct Words {
  __m512i v;
};

MDLM_INLINE Words load_words(const std::uint16_t* p) { return {_mm512_loadu_si512(p)}; }
MDLM_INLINE Words splat_words(std::uint16_t x) { return {_mm512_set1_epi16(static_cast<short>(x))}; }
// Sign-magnitude to two's complement: signed order of the result = order of the floating-point numbers (own inverse).
MDLM_INLINE Words ordered(Words a) {
  return {_mm512_ternarylogic_epi32(a.v, _mm512_srai_epi16(a.v, 15), _mm512_set1_epi16(0x7fff), 0x78)};
}
MDLM_INLINE Words exclusive_or(Words a, Words b) { return {_mm512_xor_si512(a.v, b.v)}; }
MDLM_INLINE Words maximum(Words a, Words b) { return {_mm512_max_epi16(a.v, b.v)}; }
MDLM_INLINE Words maximum_unsigned(Words a, Words b) { return {_mm512_max_epu16(a.v, b.v)}; }
using WordMask = __mmask32;
MDLM_INLINE WordMask equal(Words a, Words b) { return _mm512_cmpeq_epi16_mask(a.v, b.v); }
MDLM_INLINE std::uint32_t bits(WordMask mask) { return mask; }
MDLM_INLINE bool any(WordMask mask) { return mask != 0; }
MDLM_INLINE WordMask any_of(WordMask a, WordMask b) { return a | b; }
MDLM_INLINE std::int16_t reduce_max(Words a) {
  const __m256i b = _mm256_max_epi16(_mm512_castsi512_si256(a.v), _mm512_extracti64x4_epi64(a.v, 1));
  const __m128i c = _mm_max_epi16(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
  // phminposuw finds the smallest of eight unsigned words, so flip the order.
  const __m128i flipped = _mm_sub_epi16(_mm_set1_epi16(0x7fff), c);
  return static_cast<std::int16_t>(0x7fff - _mm_extract_epi16(_mm_minpos_epu16(flipped), 0));
}

// 32 bfloat16 to floats: the even columns, then the odd ones.
MDLM_INLINE void widen_bf16(const std::uint16_t* p, Floats& even, Floats& odd) {
  const __m512i a = _mm512_loadu_si512(p);
  even.v = _mm512_castsi512_ps(_mm512_slli_epi32(a, 16));
  odd.v = _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
MDLM_INLINE Floats load_f16(const std::uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

MDLM_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace mdlm_fast::MDLM_ISA
