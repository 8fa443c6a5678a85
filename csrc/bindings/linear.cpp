// Binds linear_score_rows for CPU tensors: the head of linear_head.h where the processor and dtype have it, else the
// library's GEMM.
#include "../cpu/linear_score.h"
#include "linear_library.h"

namespace mdlm_fast {
namespace {

Tensor with_unit_stride(const Tensor& matrix) {
  return matrix.size(1) <= 1 || matrix.stride(1) == 1 ? matrix : torch::stable::contiguous(matrix);
}

Scores linear_score_rows(Tensor hidden, Tensor weight, OptionalTensor bias, Tensor rows, Tensor row_sequence,
                         Tensor row_position, Tensor temperature, Tensor seeds, Tensor step,
                         OptionalTensor forbidden_ids, OptionalTensor guidance_hidden, OptionalTensor guidance_rows,
                         double guidance_scale, int64_t vocab_limit, int64_t top_k, double top_p, bool sample,
                         bool normalize_all, bool stats_tempered, int64_t stats) {
  const cpu::DType dtype = dtype_of(hidden);
  const int64_t depth = hidden.size(hidden.dim() - 1);
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == depth && dtype_of(weight) == dtype,
                  "mdlm_fast: weight must be [V, H] in the dtype of hidden");
  const int64_t width = weight.size(0);
  if (bias) vector<char>(*bias, hidden.scalar_type(), width, "bias");
  cpu::ScoreRequest request =
      make_request(hidden, dtype, depth, rows, row_sequence, temperature, guidance_hidden, guidance_rows);
  add_random_keys(request, row_position, temperature, seeds, step);
  cpu::ScoreOptions options = make_options(dtype, width, 0, vocab_limit, forbidden_ids, guidance_scale, normalize_all,
                                           stats_tempered, stats);
  options.top_k = static_cast<int>(std::min<int64_t>(top_k, width));
  options.top_p = top_p;
  options.sample = sample;
  const cpu::RowScorer scorer(options);
  OutputTensors outputs = make_outputs(rows, options, request.capacity);
  const Tensor w = with_unit_stride(weight);
  if (cpu::gemm_kernels(dtype) != nullptr) {
    const void* bias_data = bias ? bias->data_ptr() : nullptr;
    const cpu::LinearHead head{dtype, w.data_ptr(), w.stride(0), bias_data, width, depth};
    cpu::linear_score_rows(scorer, request, head, outputs.pointers, parallel_for());
  } else {
    linear_score_rows_library(scorer, request, hidden, w, bias, outputs.pointers);
  }
  return outputs.tensors;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mdlm_fast_cpp, m) {
  m.def(
      "linear_score_rows(Tensor hidden, Tensor weight, Tensor? bias, Tensor rows, Tensor row_sequence, "
      "Tensor row_position, Tensor temperature, Tensor seeds, Tensor step, Tensor? forbidden_ids, "
      "Tensor? guidance_hidden, Tensor? guidance_rows, float guidance_scale, int vocab_limit, int top_k, float top_p, "
      "bool sample, bool normalize_all, bool stats_tempered, int stats) -> "
      "(Tensor token, Tensor logp, Tensor logp_T, Tensor margin, Tensor entropy)");
}

STABLE_TORCH_LIBRARY_IMPL(mdlm_fast_cpp, CPU, m) { m.impl("linear_score_rows", TORCH_BOX(&linear_score_rows)); }

}  // namespace mdlm_fast
