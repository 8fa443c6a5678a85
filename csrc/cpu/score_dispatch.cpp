// Chooses the instruction set of the scoring kernels.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "score_kernels.h"

namespace mdlm_fast::cpu {
namespace {

const ScoreKernels* usable(const std::string& name) {
  if (name == "portable") return &kScoreKernelsPortable;
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (name == "avx2") return has_avx2 ? &kScoreKernelsAvx2 : nullptr;
  if (name == "avx512") {
    const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return has_avx2 && has_avx512 ? &kScoreKernelsAvx512 : nullptr;
  }
#endif
  return nullptr;
}

const ScoreKernels& choose() {
  if (const char* wanted = std::getenv("MDLM_FAST_CPU_ISA"); wanted != nullptr && *wanted != '\0') {
    if (const ScoreKernels* kernels = usable(wanted)) return *kernels;
    throw std::runtime_error(std::string("MDLM_FAST_CPU_ISA=") + wanted +
                             " is not one of portable, avx2, avx512, or this processor lacks it; unset it");
  }
  for (const char* name : {"avx512", "avx2"})
    if (const ScoreKernels* kernels = usable(name)) return *kernels;
  return kScoreKernelsPortable;
}

}  // namespace

const ScoreKernels& score_kernels() {
  static const ScoreKernels& kernels = choose();
  return kernels;
}

}  // namespace mdlm_fast::cpu
