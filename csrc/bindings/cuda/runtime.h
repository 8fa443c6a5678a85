// What the bindings of the CUDA kernels share: which library they register in, the current stream, and errors.
//
// The same files are compiled against the host shim (MDLM_FAST_SHIM), where the tensors are CPU tensors, there are no
// streams, and the ops stand in a namespace of their own; so the tests of the shim cover the bindings too.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../../cuda/runtime.h"

#if defined(MDLM_FAST_SHIM)
#define MDLM_FAST_CUDA_FRAGMENT(m) STABLE_TORCH_LIBRARY_FRAGMENT(mdlm_fast_shim, m)
#define MDLM_FAST_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(mdlm_fast_shim, CPU, m)
#else
#define MDLM_FAST_CUDA_FRAGMENT(m) STABLE_TORCH_LIBRARY_FRAGMENT(mdlm_fast_cuda, m)
#define MDLM_FAST_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(mdlm_fast_cuda, CUDA, m)
#endif

namespace mdlm_fast {

// Makes a tensor's device current for the life of the object and names the stream that its work belongs on.
class DeviceScope {
 public:
#if defined(MDLM_FAST_SHIM)
  explicit DeviceScope(const torch::stable::Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
#else
  explicit DeviceScope(const torch::stable::Tensor& tensor)
      : device_(tensor.get_device_index()), guard_(device_) {}

  cudaStream_t stream() const {
#if defined(TORCH_VERSION_2_13_0) && TORCH_FEATURE_VERSION >= TORCH_VERSION_2_13_0
    return static_cast<cudaStream_t>(torch::stable::accelerator::getCurrentStream(device_).nativeHandle());
#else  // only where a build for an older torch is asked for: this symbol is not in a CPU build of torch
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream) == 0, "mdlm_fast: no current CUDA stream");
    return static_cast<cudaStream_t>(stream);
#endif
  }

 private:
  torch::stable::accelerator::DeviceIndex device_;
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

inline void check_launch(cudaError_t error, const char* kernel) {
  STD_TORCH_CHECK(error == cudaSuccess, "mdlm_fast: launching ", kernel, " failed: ", cudaGetErrorString(error));
}

}  // namespace mdlm_fast
