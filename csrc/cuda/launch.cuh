// Starting a kernel: on a device through the runtime, under the host shim thread by thread.
#pragma once

#include <cstddef>

#include "platform.cuh"

namespace mdlm_fast::cuda {

struct LaunchShape {
  dim3 grid;
  int threads;                     // of a block
  std::size_t shared_bytes = 0;    // dynamic shared memory of a block
  bool cooperative = false;        // all blocks run at once, so that they may wait for each other (grid_barrier)
};

// Lets blocks of `kernel` have this much dynamic shared memory. A kernel gets 48 KB unasked, its static memory included.
template <class... Parameters>
cudaError_t allow_shared_memory([[maybe_unused]] void (*kernel)(Parameters...),
                                [[maybe_unused]] std::size_t shared_bytes) {
#if !defined(MDLM_FAST_SHIM)
  if (shared_bytes > 32 * 1024)
    return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(shared_bytes));
#endif
  return cudaSuccess;
}

// How many blocks of `kernel` run at once on the current device, which bounds the grid of a cooperative launch.
template <class... Parameters>
cudaError_t count_resident_blocks(void (*kernel)(Parameters...), int threads, std::size_t shared_bytes, int* blocks) {
  int device = 0, multiprocessors = 0, each = 0;
  cudaError_t error = allow_shared_memory(kernel, shared_bytes);
  if (error == cudaSuccess) error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, reinterpret_cast<const void*>(kernel), threads,
                                                          shared_bytes);
  *blocks = each * multiprocessors;
  return error;
}

// Runs kernel(arguments...) on `stream`; an empty grid is no error. Nothing is allocated and nothing waits.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
                   const Arguments&... arguments) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return cudaSuccess;
#if !defined(MDLM_FAST_SHIM)
  const cudaError_t error = allow_shared_memory(kernel, shape.shared_bytes);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  config.attrs = &attribute;
  config.numAttrs = shape.cooperative ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
#else
  return shim::launch(shape.grid, shape.threads, shape.shared_bytes, shape.cooperative, stream,
                      [&] { kernel(static_cast<Parameters>(arguments)...); });
#endif
}

}  // namespace mdlm_fast::cuda
