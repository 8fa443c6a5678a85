// Reading the arguments that name rows of logits, for the CUDA scoring ops. Values on the device are not looked at: the
// public functions document what they must be.
#pragma once

#include <algorithm>
#include <tuple>

#include "../../cuda/finish_scores.h"
#include "../tensors.h"
#include "runtime.h"

namespace mdlm_fast {

using Scores = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

inline cuda::ElementType element_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return cuda::ElementType::kFloat32;
    case ScalarType::BFloat16: return cuda::ElementType::kBFloat16;
    case ScalarType::Half: return cuda::ElementType::kFloat16;
    default: STD_TORCH_CHECK(false, "mdlm_fast: logits must be float32, bfloat16 or float16");
  }
}

// A view of [N, V] or [B, L, V].
inline cuda::LogitRows logit_rows(const Tensor& tensor, ScalarType dtype, int64_t width) {
  const int64_t dim = tensor.dim();
  STD_TORCH_CHECK(dim == 2 || dim == 3, "mdlm_fast: logits must be [N, V] or [B, L, V], got ", dim, " dimensions");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype && tensor.size(dim - 1) == width,
                  "mdlm_fast: logits and guidance differ in dtype or width");
  STD_TORCH_CHECK(width <= 1 || tensor.stride(dim - 1) == 1, "mdlm_fast: the last stride of the logits must be 1");
  const int64_t batch_stride = dim == 3 ? tensor.stride(0) : 0, row_stride = tensor.stride(dim - 2);
  const int64_t size = tensor.element_size(), address = reinterpret_cast<int64_t>(tensor.data_ptr());
  const bool aligned = address % 16 == 0 && batch_stride * size % 16 == 0 && row_stride * size % 16 == 0;
  const int64_t rows_per_batch = std::clamp<int64_t>(tensor.size(dim - 2), 1, INT32_MAX);  // row numbers are int32
  return {tensor.data_ptr(), static_cast<int>(rows_per_batch), aligned, batch_stride, row_stride};
}

inline cuda::ScoreSource score_source(const Tensor& logits, const Tensor& rows, const Tensor& row_sequence,
                                      const Tensor& temperature, const OptionalTensor& forbidden_ids,
                                      const OptionalTensor& guidance, const OptionalTensor& guidance_rows,
                                      double guidance_scale, int64_t vocab_start, int64_t vocab_limit,
                                      bool normalize_all) {
  const int64_t width = logits.size(logits.dim() - 1), capacity = rows.numel();
  STD_TORCH_CHECK(width >= 1 && vocab_start >= 0 && vocab_start + width < INT32_MAX - 2048,
                  "mdlm_fast: a vocabulary of ", width, " from id ", vocab_start, " is out of range");
  STD_TORCH_CHECK(vocab_start % 2048 == 0, "mdlm_fast: vocab_start=", vocab_start, " must be a multiple of 2048");
  cuda::ScoreSource source{};
  source.type = element_type(logits);
  source.logits = logit_rows(logits, logits.scalar_type(), width);
  source.width = static_cast<int>(width);
  source.tiles = static_cast<int>((width + 2047) / 2048);
  source.vocab_start = static_cast<int>(vocab_start);
  source.vocab_limit = static_cast<int>(std::min<int64_t>(vocab_limit, INT32_MAX));
  STD_TORCH_CHECK(capacity * source.tiles <= INT32_MAX, "mdlm_fast: ", capacity, " rows of ", source.tiles,
                  " tiles are too many for one call");
  if (forbidden_ids) {
    source.num_forbidden = static_cast<int>(forbidden_ids->numel());
    source.forbidden = pointer<int64_t>(*forbidden_ids, ScalarType::Long, forbidden_ids->numel(), "forbidden_ids");
  }
  source.normalize_all = normalize_all;
  if (guidance) {
    STD_TORCH_CHECK(guidance_rows.has_value(), "mdlm_fast: guidance needs guidance_rows");
    source.guidance = logit_rows(*guidance, logits.scalar_type(), width);
    source.own_scale = static_cast<float>(guidance_scale + 1.0);
    source.guidance_scale = static_cast<float>(guidance_scale);
    source.guidance_rows = pointer<int32_t>(*guidance_rows, ScalarType::Int, capacity, "guidance_rows");
  }
  source.capacity = capacity;
  source.rows = pointer<int32_t>(rows, ScalarType::Int, capacity, "rows");
  source.row_sequence = pointer<int32_t>(row_sequence, ScalarType::Int, capacity, "row_sequence");
  source.temperature = pointer<float>(temperature, ScalarType::Float, temperature.numel(), "temperature");
  return source;
}

}  // namespace mdlm_fast
