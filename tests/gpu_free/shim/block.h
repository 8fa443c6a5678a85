// Launches, and what the threads of a block share: memory and barriers.
#pragma once

#include <cstddef>
#include <functional>

#include "report.h"
#include "runtime_types.h"

namespace mdlm_fast::shim {

// Runs body() once per thread, with threadIdx, blockIdx, blockDim and gridDim set.
cudaError_t launch(dim3 grid, int threads, std::size_t shared_bytes, bool cooperative, cudaStream_t stream,
                   const std::function<void()>& body);

// Of the running block.
void* dynamic_shared_memory();

// Waits for every thread of the block, those that have returned included: such a barrier is reported as divergent.
// All must wait in the same operation at the same source line. Returns how many gave a true predicate.
int block_barrier(const char* operation, bool predicate, const Where& where);

// Waits for every thread of a cooperative launch.
void grid_barrier(const Where& where = Where::current());

// The running thread and block, for error messages and for tests of memory ranges.
bool in_shared_memory(const void* address);
unsigned running_thread();

}  // namespace mdlm_fast::shim

inline void __syncthreads(const mdlm_fast::shim::Where& where = mdlm_fast::shim::Where::current()) {
  mdlm_fast::shim::block_barrier("__syncthreads", false, where);
}

inline int __syncthreads_count(int predicate,
                               const mdlm_fast::shim::Where& where = mdlm_fast::shim::Where::current()) {
  return mdlm_fast::shim::block_barrier("__syncthreads_count", predicate != 0, where);
}

inline int __syncthreads_or(int predicate, const mdlm_fast::shim::Where& where = mdlm_fast::shim::Where::current()) {
  return mdlm_fast::shim::block_barrier("__syncthreads_or", predicate != 0, where) != 0;
}

inline int __syncthreads_and(int predicate, const mdlm_fast::shim::Where& where = mdlm_fast::shim::Where::current()) {
  return mdlm_fast::shim::block_barrier("__syncthreads_and", predicate == 0, where) == 0;
}

inline void __threadfence_block() {}
inline void __threadfence() {}
