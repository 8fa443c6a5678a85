// The kernels of score_tile.h for AVX-512.
#include "targets.h"

#if defined(MDLM_FAST_BUILDS_AVX)
// Everything with a body in a header that others include too comes before the pragma, so that no copy of it made for
// this instruction set can be linked into theirs.
#include "score_kernels.h"

// GCC 12 takes the undefined pass-through operands inside its own AVX-512 intrinsics for mistakes of the caller.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define MDLM_ISA avx512
#include "simd_avx512.h"
#include "score_tile.h"

namespace mdlm_fast::cpu {
constinit const ScoreKernels kScoreKernelsAvx512 = avx512::make_kernels();
}
#endif
