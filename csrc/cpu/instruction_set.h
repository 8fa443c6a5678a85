// Which instructions the CPU kernels use; decided once.
#pragma once

namespace mdlm_fast::cpu {

// In ascending order: each set includes those before it.
enum class InstructionSet : int { kPortable, kAvx2, kAvx512, kAmx };

// The best this processor and its operating system allow, or the one that MDLM_FAST_CPU_ISA=portable|avx2|avx512|amx
// names. Throws std::runtime_error where the name is unknown, or the processor, the system or this build lacks it.
InstructionSet instruction_set();

// Whether the processor has AVX512_BF16, which kAvx512 does not promise.
bool has_avx512_bf16();

// As MDLM_FAST_CPU_ISA spells it.
const char* name(InstructionSet set);

}  // namespace mdlm_fast::cpu
