// The kernels of score_tile.h for AVX2 with FMA.
#include "targets.h"

#if defined(MDLM_FAST_BUILDS_AVX)
// Everything with a body in a header that others include too comes before the pragma, so that no copy of it made for
// this instruction set can be linked into theirs.
#include "score_kernels.h"

#pragma GCC target("avx2,fma,f16c")
#define MDLM_ISA avx2
#include "simd_avx2.h"
#include "score_tile.h"

namespace mdlm_fast::cpu {
constinit const ScoreKernels kScoreKernelsAvx2 = avx2::make_kernels();
}
#endif
