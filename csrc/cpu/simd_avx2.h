// The vector types of simd_avx512.h on AVX2 and FMA: 16 floats or 32 sixteen-bit words in two registers.
#pragma once

#include <cstdint>
#include <immintrin.h>

#define MDLM_INLINE inline __attribute__((always_inline))

namespace mdlm_fast::MDLM_ISA {

// Sixteen registers hold the sums of half a 64-column block.
constexpr int kHalvesAtOnce = 1;
constexpr bool kFewKernels = false;

struct Mask {
  __m256 a, b;
};

struct Floats {
  __m256 a, b;  // lanes 0-7, 8-15
};

MDLM_INLINE Floats splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
MDLM_INLINE Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
MDLM_INLINE void store(float* p, Floats x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
MDLM_INLINE Floats operator+(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
MDLM_INLINE Floats operator-(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
MDLM_INLINE Floats operator*(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
MDLM_INLINE Floats fused(Floats x, Floats y, Floats z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
MDLM_INLINE Floats fused_minus(Floats x, Floats y, Floats z) {
  return {_mm256_fmsub_ps(x.a, y.a, z.a), _mm256_fmsub_ps(x.b, y.b, z.b)};
}
MDLM_INLINE Floats maximum(Floats x, Floats y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }

MDLM_INLINE Mask not_below(Floats x, Floats y) {
  return {_mm256_cmp_ps(x.a, y.a, _CMP_NLT_UQ), _mm256_cmp_ps(x.b, y.b, _CMP_NLT_UQ)};
}
MDLM_INLINE Mask equal(Floats x, Floats y) {
  return {_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ)};
}
MDLM_INLINE Mask is_nan(Floats x) {
  return {_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q)};
}
MDLM_INLINE unsigned bits(Mask mask) {
  return static_cast<unsigned>(_mm256_movemask_ps(mask.a)) | static_cast<unsigned>(_mm256_movemask_ps(mask.b)) << 8;
}
MDLM_INLINE bool any(Mask mask) { return _mm256_movemask_ps(_mm256_or_ps(mask.a, mask.b)) != 0; }
MDLM_INLINE Mask any_of(Mask x, Mask y) { return {_mm256_or_ps(x.a, y.a), _mm256_or_ps(x.b, y.b)}; }
// x where the mask is set, +0 elsewhere.
MDLM_INLINE Floats keep(Mask mask, Floats x) { return {_mm256_and_ps(x.a, mask.a), _mm256_and_ps(x.b, mask.b)}; }
// Lanes that `keep` will clear, held where their arithmetic stays finite; NaN stays NaN.
MDLM_INLINE Floats clamp_below(Floats x, Floats least) { return maximum(least, x); }
// x has been through `keep`, so the other lanes add -0 or +0, which changes nothing.
MDLM_INLINE Floats fused_where(Mask, Floats x, Floats y, Floats z) { return fused(x, y, z); }

struct ExpTable {
  __m256i entries[4];
  MDLM_INLINE explicit ExpTable(const std::int32_t* p) {
    for (int i = 0; i < 4; ++i) entries[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8 * i));
  }
  MDLM_INLINE __m256 half(__m256 t) const {
    const __m256i n = _mm256_castps_si256(t);
    __m256 quarter[4];
    for (int i = 0; i < 4; ++i) quarter[i] = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(entries[i], n));
    const __m256 bit3 = _mm256_castsi256_ps(_mm256_slli_epi32(n, 28));
    const __m256 bit4 = _mm256_castsi256_ps(_mm256_slli_epi32(n, 27));
    const __m256 entry = _mm256_blendv_ps(_mm256_blendv_ps(quarter[0], quarter[1], bit3),
                                          _mm256_blendv_ps(quarter[2], quarter[3], bit3), bit4);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(entry), _mm256_slli_epi32(n, 18)));
  }
  MDLM_INLINE Floats operator()(Floats t) const { return {half(t.a), half(t.b)}; }
};

MDLM_INLINE float reduce_max(Floats x) {
  const __m256 b = _mm256_max_ps(x.a, x.b);
  const __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}

MDLM_INLINE float reduce_add(Floats x) {
  const __m256 b = _mm256_add_ps(x.a, x.b);
  const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}

struct Words {
  __m256i a, b;
};

MDLM_INLINE __m256i load_half(const std::uint16_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
MDLM_INLINE Words load_words(const std::uint16_t* p) { return {load_half(p), load_half(p + 16)}; }
MDLM_INLINE Words splat_words(std::uint16_t x) {
  const __m256i v = _mm256_set1_epi16(static_cast<short>(x));
  return {v, v};
}
MDLM_INLINE __m256i ordered_half(__m256i x) {
  return _mm256_xor_si256(x, _mm256_and_si256(_mm256_srai_epi16(x, 15), _mm256_set1_epi16(0x7fff)));
}
MDLM_INLINE Words ordered(Words x) { return {ordered_half(x.a), ordered_half(x.b)}; }
MDLM_INLINE Words exclusive_or(Words x, Words y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
MDLM_INLINE Words maximum(Words x, Words y) { return {_mm256_max_epi16(x.a, y.a), _mm256_max_epi16(x.b, y.b)}; }
MDLM_INLINE Words maximum_unsigned(Words x, Words y) {
  return {_mm256_max_epu16(x.a, y.a), _mm256_max_epu16(x.b, y.b)};
}
struct WordMask {
  __m256i a, b;
};
MDLM_INLINE WordMask equal(Words x, Words y) { return {_mm256_cmpeq_epi16(x.a, y.a), _mm256_cmpeq_epi16(x.b, y.b)}; }
MDLM_INLINE std::uint32_t bits(WordMask mask) {
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi16(mask.a, mask.b), 0xD8);
  return static_cast<std::uint32_t>(_mm256_movemask_epi8(packed));
}
MDLM_INLINE bool any(WordMask mask) { return _mm256_movemask_epi8(_mm256_or_si256(mask.a, mask.b)) != 0; }
MDLM_INLINE WordMask any_of(WordMask x, WordMask y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
MDLM_INLINE std::int16_t reduce_max(Words x) {
  const __m256i b = _mm256_max_epi16(x.a, x.b);
  const __m128i c = _mm_max_epi16(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
  const __m128i flipped = _mm_sub_epi16(_mm_set1_epi16(0x7fff), c);
  return static_cast<std::int16_t>(0x7fff - _mm_extract_epi16(_mm_minpos_epu16(flipped), 0));
}

MDLM_INLINE void widen_bf16(const std::uint16_t* p, Floats& even, Floats& odd) {
  const Words x = load_words(p);
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  even = {_mm256_castsi256_ps(_mm256_slli_epi32(x.a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(x.b, 16))};
  odd = {_mm256_castsi256_ps(_mm256_and_si256(x.a, high)), _mm256_castsi256_ps(_mm256_and_si256(x.b, high))};
}
MDLM_INLINE Floats load_f16(const std::uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}

MDLM_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace mdlm_fast::MDLM_ISA
