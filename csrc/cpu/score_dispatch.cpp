// Chooses the scoring kernels.
#include "instruction_set.h"
#include "score_kernels.h"

namespace mdlm_fast::cpu {

const ScoreKernels& score_kernels() {
#if defined(MDLM_FAST_BUILDS_AVX)
  const InstructionSet set = instruction_set();
  if (set >= InstructionSet::kAvx512) return kScoreKernelsAvx512;
  if (set >= InstructionSet::kAvx2) return kScoreKernelsAvx2;
#else
  instruction_set();  // refuses a name that it does not know
#endif
  return kScoreKernelsPortable;
}

}  // namespace mdlm_fast::cpu
