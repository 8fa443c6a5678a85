// Reading the arguments that the scoring ops share. Shapes and dtypes were checked by mdlm_fast.ops; what is checked here
// is only what would let a kernel leave its buffers.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "../cpu/score_rows.h"

namespace mdlm_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Scores = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
const T* vector(const Tensor& tensor, ScalarType dtype, int64_t least, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, "mdlm_fast: ", name, " has an unexpected dtype");
  STD_TORCH_CHECK(tensor.is_contiguous(), "mdlm_fast: ", name, " must be contiguous");
  STD_TORCH_CHECK(tensor.numel() >= least, "mdlm_fast: ", name, " has ", tensor.numel(), " elements, expected ", least);
  return static_cast<const T*>(tensor.data_ptr());
}

inline cpu::DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return cpu::DType::kFloat32;
    case ScalarType::BFloat16: return cpu::DType::kBFloat16;
    case ScalarType::Half: return cpu::DType::kFloat16;
    default: STD_TORCH_CHECK(false, "mdlm_fast: logits must be float32, bfloat16 or float16");
  }
}

// A view of [N, V] or [B, L, V], and how many rows it has.
inline cpu::RowsView rows_view(const Tensor& tensor, cpu::DType dtype, int64_t width, int64_t& count) {
  const int64_t dim = tensor.dim(), element = static_cast<int64_t>(cpu::size_of(dtype));
  STD_TORCH_CHECK(dim == 2 || dim == 3, "mdlm_fast: rows must be [N, V] or [B, L, V], got ", dim, " dimensions");
  STD_TORCH_CHECK(dtype_of(tensor) == dtype && tensor.size(dim - 1) == width,
                  "mdlm_fast: two tensors of rows differ in dtype or width");
  STD_TORCH_CHECK(width <= 1 || tensor.stride(dim - 1) == 1, "mdlm_fast: the last stride of the rows must be 1");
  const int64_t outer = dim == 3 ? tensor.size(0) : 1, inner = tensor.size(dim - 2);
  count = outer * inner;
  return {static_cast<const char*>(tensor.data_ptr()), std::max<int64_t>(inner, 1),
          dim == 3 ? tensor.stride(0) * element : 0, tensor.stride(dim - 2) * element};
}

inline void check_rows(const int32_t* rows, int64_t capacity, int64_t count, const char* name) {
  for (int64_t i = 0; i < capacity; ++i)
    STD_TORCH_CHECK(rows[i] >= -1 && rows[i] < count, "mdlm_fast: ", name, "[", i, "] is ", rows[i], ", outside the ",
                    count, " rows there are");
}

inline cpu::ParallelFor parallel_for() {
  return [](int64_t begin, int64_t end, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
    torch::stable::parallel_for(begin, end, grain, body);
  };
}

// The arguments that the three ops share. `rows_source` holds logits, or hidden states with a head.
inline cpu::ScoreRequest make_request(const Tensor& rows_source, cpu::DType dtype, int64_t width, const Tensor& rows,
                               const Tensor& row_sequence, const Tensor& temperature,
                               const OptionalTensor& guidance, const OptionalTensor& guidance_rows) {
  cpu::ScoreRequest request{};
  request.capacity = rows.numel();
  int64_t count = 0;
  request.logits = rows_view(rows_source, dtype, width, count);
  request.rows = vector<int32_t>(rows, ScalarType::Int, 0, "rows");
  check_rows(request.rows, request.capacity, count, "rows");
  request.row_sequence = vector<int32_t>(row_sequence, ScalarType::Int, request.capacity, "row_sequence");
  request.temperature = vector<float>(temperature, ScalarType::Float, 0, "temperature");
  for (int64_t i = 0; i < request.capacity; ++i)
    STD_TORCH_CHECK(request.rows[i] < 0 || (request.row_sequence[i] >= 0 && request.row_sequence[i] < temperature.numel()),
                    "mdlm_fast: row_sequence[", i, "] is ", request.row_sequence[i], ", outside the ",
                    temperature.numel(), " sequences there are");
  if (guidance) {
    STD_TORCH_CHECK(guidance_rows.has_value(), "mdlm_fast: guidance needs guidance_rows");
    request.guidance = rows_view(*guidance, dtype, width, count);
    request.guidance_rows = vector<int32_t>(*guidance_rows, ScalarType::Int, request.capacity, "guidance_rows");
    for (int64_t i = 0; i < request.capacity; ++i)
      STD_TORCH_CHECK(request.rows[i] < 0 || (request.guidance_rows[i] >= 0 && request.guidance_rows[i] < count),
                      "mdlm_fast: guidance_rows[", i, "] is ", request.guidance_rows[i], ", outside the ", count,
                      " rows there are");
  }
  return request;
}

inline void add_random_keys(cpu::ScoreRequest& request, const Tensor& row_position, const Tensor& temperature,
                     const Tensor& seeds, const Tensor& step) {
  request.row_position = vector<int32_t>(row_position, ScalarType::Int, request.capacity, "row_position");
  request.seeds = vector<int64_t>(seeds, ScalarType::Long, temperature.numel(), "seeds");
  request.step_stride = step.numel() > 1 ? 1 : 0;
  request.step = vector<int32_t>(step, ScalarType::Int, request.step_stride ? temperature.numel() : 1, "step");
}

inline cpu::ScoreOptions make_options(cpu::DType dtype, int64_t width, int64_t vocab_start, int64_t vocab_limit,
                               const OptionalTensor& forbidden_ids, double guidance_scale, bool normalize_all,
                               bool stats_tempered, int64_t stats) {
  STD_TORCH_CHECK(width >= 1 && vocab_start >= 0 && vocab_start + width < INT32_MAX,
                  "mdlm_fast: a vocabulary of ", width, " from id ", vocab_start, " is out of range");
  STD_TORCH_CHECK(vocab_start % cpu::kTileColumns == 0, "mdlm_fast: vocab_start=", vocab_start,
                  " must be a multiple of ", cpu::kTileColumns);
  cpu::ScoreOptions options{};
  options.dtype = dtype;
  options.width = width;
  options.vocab_start = vocab_start;
  options.vocab_limit = vocab_limit;
  if (forbidden_ids) {
    const int64_t* ids = vector<int64_t>(*forbidden_ids, ScalarType::Long, 0, "forbidden_ids");
    options.forbidden.assign(ids, ids + forbidden_ids->numel());
  }
  options.guidance_scale = guidance_scale;
  options.normalize_all = normalize_all;
  options.stats_tempered = stats_tempered;
  options.stats = static_cast<int>(stats) | cpu::kToken;
  return options;
}

struct OutputTensors {
  Scores tensors;
  cpu::ScoreOutputs pointers;
};

inline OutputTensors make_outputs(const Tensor& like, const cpu::ScoreOptions& options, int64_t capacity) {
  const auto floats = [&](cpu::Stat stat) {
    return torch::stable::new_empty(like, {options.wants(stat) ? capacity : 0}, ScalarType::Float);
  };
  Scores tensors{torch::stable::new_empty(like, {capacity}, ScalarType::Long), floats(cpu::kLogp),
                 floats(cpu::kLogpTempered), floats(cpu::kMargin), floats(cpu::kEntropy)};
  const auto pointer = [](const Tensor& t) { return t.numel() ? static_cast<float*>(t.data_ptr()) : nullptr; };
  return {tensors,
          {static_cast<int64_t*>(std::get<0>(tensors).data_ptr()), pointer(std::get<1>(tensors)),
           pointer(std::get<2>(tensors)), pointer(std::get<3>(tensors)), pointer(std::get<4>(tensors))}};
}

}  // namespace mdlm_fast
