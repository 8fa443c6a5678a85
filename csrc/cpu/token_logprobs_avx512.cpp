// The loops of token_logprobs_loops.h for AVX-512.
#include "targets.h"

#if defined(MDLM_FAST_BUILDS_AVX)
#include "token_logprobs_kernels.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define MDLM_ISA avx512
#include "token_logprobs_loops.h"

namespace mdlm_fast::cpu {
constinit const GradientKernels kGradientKernelsAvx512 = avx512::make_gradient_kernels();
}
#endif
