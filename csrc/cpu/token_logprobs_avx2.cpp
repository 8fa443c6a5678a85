// The loops of token_logprobs_loops.h for AVX2.
#include "targets.h"

#if defined(MDLM_FAST_BUILDS_AVX)
#include "token_logprobs_kernels.h"

#pragma GCC target("avx2,fma,f16c")
#define MDLM_ISA avx2
#include "token_logprobs_loops.h"

namespace mdlm_fast::cpu {
constinit const GradientKernels kGradientKernelsAvx2 = avx2::make_gradient_kernels();
}
#endif
