// Which kernels this compiler can build. Those for x86 turn their instructions on with GCC's target pragma, which Clang
// does not know: it builds the portable kernels alone.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MDLM_FAST_BUILDS_AVX  // AVX2, AVX-512 and AVX512_BF16
#if __GNUC__ >= 11
#define MDLM_FAST_BUILDS_AMX  // GCC 10 does not know the tile registers
#endif
#endif
