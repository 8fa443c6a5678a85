#include "instruction_set.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "targets.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(MDLM_FAST_BUILDS_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mdlm_fast::cpu {
namespace {

#if defined(__x86_64__)
struct Features {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// CPUID leaf 7; zeros where there is none. Asked directly where older compilers' __builtin_cpu_supports lacks a name.
Features extended_features(unsigned part) {
  Features found;
  __get_cpuid_count(7, part, &found.eax, &found.ebx, &found.ecx, &found.edx);
  return found;
}
#endif

#if defined(MDLM_FAST_BUILDS_AVX)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

#if defined(MDLM_FAST_BUILDS_AMX)
// Linux gives a process the state of the tile registers only after it has asked (arch_prctl(2), since 5.16); the
// permission holds for all of its threads.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool has_amx() {
  constexpr unsigned kTiles = 1u << 24, kTileBFloat16 = 1u << 22;
  const unsigned amx = extended_features(0).edx;
  return has_avx512() && has_avx512_bf16() && (amx & kTiles) != 0 && (amx & kTileBFloat16) != 0 && may_use_tiles();
}
#endif

bool usable(InstructionSet set) {
#if defined(MDLM_FAST_BUILDS_AMX)
  if (set == InstructionSet::kAmx) return has_amx();
#endif
#if defined(MDLM_FAST_BUILDS_AVX)
  if (set == InstructionSet::kAvx512) return has_avx512();
  if (set == InstructionSet::kAvx2) return has_avx2();
#endif
  return set == InstructionSet::kPortable;
}

constexpr InstructionSet kBestFirst[] = {InstructionSet::kAmx, InstructionSet::kAvx512, InstructionSet::kAvx2,
                                         InstructionSet::kPortable};

InstructionSet choose() {
  const char* wanted = std::getenv("MDLM_FAST_CPU_ISA");
  const bool any = wanted == nullptr || *wanted == '\0';
  for (const InstructionSet set : kBestFirst)
    if ((any || std::string(wanted) == name(set)) && usable(set)) return set;
  throw std::runtime_error(std::string("MDLM_FAST_CPU_ISA=") + wanted +
                           " is not one of portable, avx2, avx512, amx, or this processor lacks it, or the system does "
                           "not allow it, or the compiler that built this did not know it; unset it");
}

}  // namespace

bool has_avx512_bf16() {
#if defined(__x86_64__)
  static const bool has = (extended_features(1).eax & 1u << 5) != 0;
  return has;
#else
  return false;
#endif
}

const char* name(InstructionSet set) {
  constexpr const char* kNames[] = {"portable", "avx2", "avx512", "amx"};
  return kNames[static_cast<int>(set)];
}

InstructionSet instruction_set() {
  static const InstructionSet set = choose();
  return set;
}

}  // namespace mdlm_fast::cpu
