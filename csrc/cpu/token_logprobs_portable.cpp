// The loops of token_logprobs_loops.h for any processor, and the choice between the sets.
#include "instruction_set.h"
#include "token_logprobs_kernels.h"

#define MDLM_ISA portable
#include "token_logprobs_loops.h"

namespace mdlm_fast::cpu {

constinit const GradientKernels kGradientKernelsPortable = portable::make_gradient_kernels();

const GradientKernels& gradient_kernels() {
#if defined(MDLM_FAST_BUILDS_AVX)
  if (instruction_set() >= InstructionSet::kAvx512) return kGradientKernelsAvx512;
  if (instruction_set() >= InstructionSet::kAvx2) return kGradientKernelsAvx2;
#endif
  return kGradientKernelsPortable;
}

}  // namespace mdlm_fast::cpu
