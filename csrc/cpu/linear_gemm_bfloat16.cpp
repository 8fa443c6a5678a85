// The kernels of linear_gemm_kernels.h for bfloat16 on AVX512_BF16.
#include "targets.h"

#if defined(MDLM_FAST_BUILDS_AVX)
#include "linear_gemm.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")
// Both are raised by GCC 12 inside its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "linear_gemm_kernels.h"

namespace mdlm_fast::cpu {
namespace {

struct BFloat16 {
  using Element = std::uint16_t;
  static constexpr int kPerUnit = 2;

  static inline __m512 dot(__m512 acc, __m512i a, __m512i b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }

  static inline __m512i load_units(const Element* p, std::int64_t elements) {
    return _mm512_maskz_loadu_epi16(elements >= 32 ? 0xffffffffu : (1u << elements) - 1, p);
  }

  static inline void pack_row(const Element* p, std::int64_t stride, __mmask32 mask, std::int64_t rows,
                              std::uint32_t* to) {
    // unpack works within 128-bit parts: these permutations put its halves back in column order.
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    const __m512i even = _mm512_maskz_loadu_epi16(mask, p);
    const __m512i odd = rows > 1 ? _mm512_maskz_loadu_epi16(mask, p + stride) : _mm512_setzero_si512();
    const __m512i a = _mm512_unpacklo_epi16(even, odd), b = _mm512_unpackhi_epi16(even, odd);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi64(a, low, b));
    _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi64(a, high, b));
  }

  static inline __m512 widen(const Element* p, __mmask16 mask) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
  }

  static inline void store(Element* p, __m512 value, __mmask16 mask) {
    _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(value));
  }
};

}  // namespace

constinit const GemmKernels kGemmKernelsBFloat16 = make_gemm_kernels<BFloat16>();

}  // namespace mdlm_fast::cpu
#endif
