// Tensors as pointers. Shapes, dtypes and values were checked by mdlm_fast.ops; what is checked here is only what would
// let a kernel leave its buffers.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace mdlm_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Pointers go through data_ptr(): const_data_ptr<T> and mutable_data_ptr<T> do not cover every dtype used here.
template <class T>
T* pointer(const Tensor& tensor, ScalarType dtype, int64_t numel, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, "mdlm_fast: ", name, " has an unexpected dtype");
  STD_TORCH_CHECK(tensor.is_contiguous(), "mdlm_fast: ", name, " must be contiguous");
  STD_TORCH_CHECK(tensor.numel() == numel, "mdlm_fast: ", name, " has ", tensor.numel(), " elements, expected ", numel);
  return static_cast<T*>(tensor.data_ptr());
}

template <class T>
T* pointer(const OptionalTensor& tensor, ScalarType dtype, int64_t numel, const char* name) {
  return tensor ? pointer<T>(*tensor, dtype, numel, name) : nullptr;
}

}  // namespace mdlm_fast
