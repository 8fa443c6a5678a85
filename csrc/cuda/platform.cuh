// Where CUDA's keywords and built-in functions come from: nvcc, or a host shim that runs the same kernels on the CPU.
//
// A kernel file uses what CUDA C++ offers plus intrinsics.cuh, reads and writes global memory through memory.cuh and is
// started through launch.cuh, never with <<<>>>; then it compiles unchanged with g++ against tests/gpu_free/shim
// (-DMDLM_FAST_SHIM), which runs each thread as a fiber and checks barriers, shuffles and addresses.
#pragma once

#include <cstdint>

#include "runtime.h"

namespace mdlm_fast::cuda {

inline constexpr unsigned kFullWarp = 0xffffffffu;
inline constexpr int kWarpSize = 32;
inline constexpr int kTileColumns = 2048;  // canonical tiles: columns [2048 j, 2048 j + 2048) of the global vocabulary

}  // namespace mdlm_fast::cuda
