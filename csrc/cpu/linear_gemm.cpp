#include "linear_gemm.h"

#include "instruction_set.h"

namespace mdlm_fast::cpu {

const GemmKernels* gemm_kernels(DType dtype) {
#if defined(__x86_64__)
  const InstructionSet set = instruction_set();
  if (set < InstructionSet::kAvx512) return nullptr;
  static const bool has_bf16 = __builtin_cpu_supports("avx512bf16");
  if (dtype == DType::kFloat32) return &kGemmKernelsFloat32;
  if (dtype == DType::kBFloat16 && set == InstructionSet::kAmx) return &kGemmKernelsAmx;
  if (dtype == DType::kBFloat16 && has_bf16) return &kGemmKernelsBFloat16;
#endif
  return nullptr;
}

}  // namespace mdlm_fast::cpu
