// Binds score_rows, score_partials and finish_scores for CPU tensors. Shapes and dtypes were checked by mdlm_fast.ops;
// what is checked here is only what would let a kernel leave its buffers.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <optional>
#include <tuple>

#include "../cpu/score_rows.h"

namespace mdlm_fast {
namespace {

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

cpu::DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return cpu::DType::kFloat32;
    case ScalarType::BFloat16: return cpu::DType::kBFloat16;
    case ScalarType::Half: return cpu::DType::kFloat16;
    default: STD_TORCH_CHECK(false, "mdlm_fast: logits must be float32, bfloat16 or float16");
  }
}

// A view of [N, V] or [B, L, V], and how many rows it has.
cpu::RowsView rows_view(const Tensor& tensor, cpu::DType dtype, int64_t width, int64_t& count) {
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

void check_rows(const int32_t* rows, int64_t capacity, int64_t count, const char* name) {
  for (int64_t i = 0; i < capacity; ++i)
    STD_TORCH_CHECK(rows[i] >= -1 && rows[i] < count, "mdlm_fast: ", name, "[", i, "] is ", rows[i], ", outside the ",
                    count, " rows there are");
}

cpu::ParallelFor parallel_for() {
  return [](int64_t begin, int64_t end, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
    torch::stable::parallel_for(begin, end, grain, body);
  };
}

// The arguments that the three ops share. `rows_source` holds logits, or hidden states with a head.
cpu::ScoreRequest make_request(const Tensor& rows_source, cpu::DType dtype, int64_t width, const Tensor& rows,
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

void add_random_keys(cpu::ScoreRequest& request, const Tensor& row_position, const Tensor& temperature,
                     const Tensor& seeds, const Tensor& step) {
  request.row_position = vector<int32_t>(row_position, ScalarType::Int, request.capacity, "row_position");
  request.seeds = vector<int64_t>(seeds, ScalarType::Long, temperature.numel(), "seeds");
  request.step_stride = step.numel() > 1 ? 1 : 0;
  request.step = vector<int32_t>(step, ScalarType::Int, request.step_stride ? temperature.numel() : 1, "step");
}

cpu::ScoreOptions make_options(cpu::DType dtype, int64_t width, int64_t vocab_start, int64_t vocab_limit,
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

OutputTensors make_outputs(const Tensor& like, const cpu::ScoreOptions& options, int64_t capacity) {
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

Scores score_rows(Tensor logits, Tensor rows, Tensor row_sequence, Tensor row_position, Tensor temperature,
                  Tensor seeds, Tensor step, OptionalTensor forbidden_ids, OptionalTensor guidance_logits,
                  OptionalTensor guidance_rows, double guidance_scale, int64_t vocab_limit, int64_t top_k,
                  double top_p, bool sample, bool normalize_all, bool stats_tempered, int64_t stats) {
  const cpu::DType dtype = dtype_of(logits);
  const int64_t width = logits.size(logits.dim() - 1);
  cpu::ScoreRequest request =
      make_request(logits, dtype, width, rows, row_sequence, temperature, guidance_logits, guidance_rows);
  add_random_keys(request, row_position, temperature, seeds, step);
  cpu::ScoreOptions options = make_options(dtype, width, 0, vocab_limit, forbidden_ids, guidance_scale, normalize_all,
                                           stats_tempered, stats);
  options.top_k = static_cast<int>(std::min<int64_t>(top_k, width));
  options.top_p = top_p;
  options.sample = sample;
  const cpu::RowScorer scorer(options);
  OutputTensors outputs = make_outputs(rows, options, request.capacity);
  cpu::score_rows(scorer, request, outputs.pointers, static_cast<int>(torch::stable::get_num_threads()),
                  parallel_for());
  return outputs.tensors;
}

Tensor score_partials(Tensor logits, Tensor rows, Tensor row_sequence, Tensor temperature,
                      OptionalTensor forbidden_ids, OptionalTensor guidance_logits, OptionalTensor guidance_rows,
                      double guidance_scale, int64_t vocab_start, int64_t vocab_limit, bool normalize_all,
                      bool stats_tempered, int64_t stats) {
  const cpu::DType dtype = dtype_of(logits);
  const int64_t width = logits.size(logits.dim() - 1);
  const cpu::ScoreRequest request =
      make_request(logits, dtype, width, rows, row_sequence, temperature, guidance_logits, guidance_rows);
  const cpu::RowScorer scorer(make_options(dtype, width, vocab_start, vocab_limit, forbidden_ids, guidance_scale,
                                           normalize_all, stats_tempered, stats));
  Tensor partials =
      torch::stable::new_empty(rows, {request.capacity, scorer.options().tiles(), 8}, ScalarType::Float);
  cpu::score_partials(scorer, request, static_cast<float*>(partials.data_ptr()), parallel_for());
  return partials;
}

Scores finish_scores(Tensor partials, OptionalTensor logits, OptionalTensor hidden, OptionalTensor weight,
                     OptionalTensor bias, Tensor rows, Tensor row_sequence, Tensor row_position, Tensor temperature,
                     Tensor seeds, Tensor step, OptionalTensor forbidden_ids, OptionalTensor guidance_logits,
                     OptionalTensor guidance_rows, double guidance_scale, int64_t vocab_limit, int64_t top_k,
                     double top_p, bool sample, bool normalize_all, bool stats_tempered, int64_t stats) {
  STD_TORCH_CHECK(logits.has_value() || (hidden.has_value() && weight.has_value()),
                  "mdlm_fast: finish_scores needs logits, or hidden and weight");
  const Tensor& source = logits ? *logits : *hidden;
  const cpu::DType dtype = dtype_of(source);
  const int64_t source_width = source.size(source.dim() - 1), width = logits ? source_width : weight->size(0);
  cpu::ScoreRequest request =
      make_request(source, dtype, source_width, rows, row_sequence, temperature, guidance_logits, guidance_rows);
  add_random_keys(request, row_position, temperature, seeds, step);
  if (!logits) {
    STD_TORCH_CHECK(dtype_of(*weight) == dtype && weight->dim() == 2 && weight->size(1) == source_width &&
                        (source_width <= 1 || weight->stride(1) == 1),
                    "mdlm_fast: weight must be [V, H] in the dtype of hidden, with last stride 1");
    request.head = {static_cast<const char*>(weight->data_ptr()), nullptr, source_width,
                    weight->stride(0) * static_cast<int64_t>(cpu::size_of(dtype))};
    if (bias) request.head.bias = vector<char>(*bias, source.scalar_type(), width, "bias");
  }
  cpu::ScoreOptions options = make_options(dtype, width, 0, vocab_limit, forbidden_ids, guidance_scale, normalize_all,
                                           stats_tempered, stats);
  options.top_k = static_cast<int>(std::min<int64_t>(top_k, width));
  options.top_p = top_p;
  options.sample = sample;
  const cpu::RowScorer scorer(options);
  const float* values = vector<float>(partials, ScalarType::Float, request.capacity * options.tiles() * 8, "partials");
  OutputTensors outputs = make_outputs(rows, options, request.capacity);
  cpu::finish_scores(scorer, request, values, outputs.pointers, parallel_for());
  return outputs.tensors;
}

// Reads every byte of a contiguous tensor once, on all threads: what any op over it must at least take.
int64_t read_floor(Tensor tensor) {
  STD_TORCH_CHECK(tensor.is_contiguous(), "mdlm_fast: read_floor needs a contiguous tensor");
  const int64_t bytes = tensor.numel() * tensor.element_size(), chunk = 1 << 16;
  const char* data = static_cast<const char*>(tensor.data_ptr());
  std::atomic<uint64_t> check{0};
  torch::stable::parallel_for(0, (bytes + chunk - 1) / chunk, 1, [&](int64_t begin, int64_t end) {
    check ^= cpu::score_kernels().read(data + begin * chunk, std::min(bytes, end * chunk) - begin * chunk);
  });
  return static_cast<int64_t>(check.load());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mdlm_fast_cpp, m) {
  m.def(
      "score_rows(Tensor logits, Tensor rows, Tensor row_sequence, Tensor row_position, Tensor temperature, "
      "Tensor seeds, Tensor step, Tensor? forbidden_ids, Tensor? guidance_logits, Tensor? guidance_rows, "
      "float guidance_scale, int vocab_limit, int top_k, float top_p, bool sample, bool normalize_all, "
      "bool stats_tempered, int stats) -> (Tensor token, Tensor logp, Tensor logp_T, Tensor margin, Tensor entropy)");
  m.def(
      "score_partials(Tensor logits, Tensor rows, Tensor row_sequence, Tensor temperature, Tensor? forbidden_ids, "
      "Tensor? guidance_logits, Tensor? guidance_rows, float guidance_scale, int vocab_start, int vocab_limit, "
      "bool normalize_all, bool stats_tempered, int stats) -> Tensor");
  m.def(
      "finish_scores(Tensor partials, Tensor? logits, Tensor? hidden, Tensor? weight, Tensor? bias, Tensor rows, "
      "Tensor row_sequence, Tensor row_position, Tensor temperature, Tensor seeds, Tensor step, "
      "Tensor? forbidden_ids, Tensor? guidance_logits, Tensor? guidance_rows, float guidance_scale, int vocab_limit, "
      "int top_k, float top_p, bool sample, bool normalize_all, bool stats_tempered, int stats) -> "
      "(Tensor token, Tensor logp, Tensor logp_T, Tensor margin, Tensor entropy)");
  m.def("read_floor(Tensor tensor) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(mdlm_fast_cpp, CPU, m) {
  m.impl("score_rows", TORCH_BOX(&score_rows));
  m.impl("score_partials", TORCH_BOX(&score_partials));
  m.impl("finish_scores", TORCH_BOX(&finish_scores));
  m.impl("read_floor", TORCH_BOX(&read_floor));
}

}  // namespace mdlm_fast
