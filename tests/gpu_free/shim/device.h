// The device that the shim stands for, to host code and to launches.
#pragma once

#include <cstddef>
#include <string>

#include "runtime_types.h"

namespace mdlm_fast::shim {

inline constexpr int kMaxThreads = 1024;  // of a block
inline constexpr int kMaxThreadsPerMultiprocessor = 2048;
inline constexpr int kMaxBlocksPerMultiprocessor = 32;
inline constexpr std::size_t kMaxSharedBytes = 227 * 1024;  // of a block, opted in
inline constexpr std::size_t kSharedBytesPerMultiprocessor = 228 * 1024;
inline constexpr std::size_t kReservedSharedBytes = 1024;  // by the system, for each block

int multiprocessors();

// Remembers the outcome of a launch for cudaGetErrorString and cudaGetLastError; returns `error`.
cudaError_t record_error(cudaError_t error, const std::string& message);

}  // namespace mdlm_fast::shim
