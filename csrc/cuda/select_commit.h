// Selecting and committing tokens on the canvas, and remasking them, on the GPU.
#pragma once

#include <cstdint>

#include "../common/select_commit_arguments.h"
#include "runtime.h"

namespace mdlm_fast::cuda {

// Bytes of global memory that a call needs: 0 while a sequence fits into a block's shared memory.
std::int64_t select_commit_scratch_bytes(const SelectCommit& args);
std::int64_t remask_scratch_bytes(const Remask& args);

// One launch each. `scratch` holds that many bytes, 16-byte aligned; it keeps nothing between calls.
cudaError_t select_commit(const SelectCommit& args, void* scratch, cudaStream_t stream);
cudaError_t remask(const Remask& args, void* scratch, cudaStream_t stream);

}  // namespace mdlm_fast::cuda
