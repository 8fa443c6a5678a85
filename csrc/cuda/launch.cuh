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

// Runs kernel(arguments...) on `stream`; an empty grid is no error. Nothing is allocated and nothing waits.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
                   const Arguments&... arguments) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return cudaSuccess;
#if !defined(MDLM_FAST_SHIM)
  if (shape.shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shape.shared_bytes));
    if (error != cudaSuccess) return error;
  }
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
