#include "linear_gemm.h"

#include "instruction_set.h"

namespace mdlm_fast::cpu {

const GemmKernels* gemm_kernels(DType dtype) {
#if defined(MDLM_FAST_BUILDS_AVX)
  const InstructionSet set = instruction_set();
  if (set < InstructionSet::kAvx512) return nullptr;
  if (dtype == DType::kFloat32) return &kGemmKernelsFloat32;
#if defined(MDLM_FAST_BUILDS_AMX)
  if (dtype == DType::kBFloat16 && set == InstructionSet::kAmx) return &kGemmKernelsAmx;
#endif
  if (dtype == DType::kBFloat16 && has_avx512_bf16()) return &kGemmKernelsBFloat16;
#endif
  return nullptr;
}

}  // namespace mdlm_fast::cpu
