// What the library can tell about itself, for `mdlm-fast doctor`.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/stableivalue_conversions.h>

#include <string>

#include "cpu/instruction_set.h"

namespace mdlm_fast {
namespace {

// "amx", "avx512", "avx2" or "portable": what the kernels run with on this processor.
std::string cpu_isa() { return cpu::name(cpu::instruction_set()); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mdlm_fast_cpp, m) { m.def("cpu_isa() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(mdlm_fast_cpp, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&cpu_isa)); }

}  // namespace mdlm_fast
