// Binds score_rows, score_partials and finish_scores for CPU tensors.
#include <atomic>

#include "score_arguments.h"

namespace mdlm_fast {
namespace {

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
