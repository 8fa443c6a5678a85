// What the threads of a block, or of a cooperative grid, have in common: dynamic shared memory and the grid barrier.
#pragma once

#include "platform.cuh"
#if !defined(MDLM_FAST_SHIM)
#include <cooperative_groups.h>
#endif

namespace mdlm_fast::cuda {

// The block's dynamic shared memory (LaunchShape::shared_bytes), 16-byte aligned and uninitialised. Every call gives the
// same address, whatever T is.
template <class T>
__device__ __forceinline__ T* shared_memory() {
#if !defined(MDLM_FAST_SHIM)
  extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
#else
  return static_cast<T*>(shim::dynamic_shared_memory());
#endif
}

// Waits until every thread of the grid has come here; what was written before is visible after. Cooperative launches
// only (LaunchShape::cooperative).
#if !defined(MDLM_FAST_SHIM)
__device__ __forceinline__ void grid_barrier() { cooperative_groups::this_grid().sync(); }
#else
using shim::grid_barrier;
#endif

}  // namespace mdlm_fast::cuda
