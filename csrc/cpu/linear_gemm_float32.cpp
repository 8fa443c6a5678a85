// The kernels of linear_gemm_kernels.h for float32 on AVX-512.
#include "targets.h"

#if defined(MDLM_FAST_BUILDS_AVX)
#include "linear_gemm.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
// Both are raised by GCC 12 inside its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "linear_gemm_kernels.h"

namespace mdlm_fast::cpu {
namespace {

struct Float32 {
  using Element = float;
  static constexpr int kPerUnit = 1;

  static inline __m512 dot(__m512 acc, __m512i a, __m512i b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), acc);
  }

  static inline __m512i load_units(const Element* p, std::int64_t elements) {
    return _mm512_maskz_loadu_epi32(elements >= 16 ? 0xffff : static_cast<__mmask16>((1u << elements) - 1), p);
  }

  static inline void pack_row(const Element* p, std::int64_t, __mmask32 mask, std::int64_t, std::uint32_t* to) {
    const auto low = static_cast<__mmask16>(mask), high = static_cast<__mmask16>(mask >> 16);
    _mm512_storeu_si512(to, _mm512_maskz_loadu_epi32(low, p));
    _mm512_storeu_si512(to + 16, high != 0 ? _mm512_maskz_loadu_epi32(high, p + 16) : _mm512_setzero_si512());
  }

  static inline __m512 widen(const Element* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
  static inline void store(Element* p, __m512 value, __mmask16 mask) { _mm512_mask_storeu_ps(p, mask, value); }
};

}  // namespace

constinit const GemmKernels kGemmKernelsFloat32 = make_gemm_kernels<Float32>();

}  // namespace mdlm_fast::cpu
#endif
