// The library's GEMM, for the LM heads that have no kernel of their own here.
#pragma once

#include "score_arguments.h"

namespace mdlm_fast {

// out = input weight^T + bias, as F.linear.
inline void linear_out(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Tensor& out) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(input), from(weight), from(bias), from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // releases the returned handle
}

// Scores rows of an LM head, a range of the vocabulary at a time through the library's GEMM.
void linear_score_rows_library(const cpu::RowScorer& scorer, const cpu::ScoreRequest& request, const Tensor& hidden,
                               const Tensor& weight, const OptionalTensor& bias, const cpu::ScoreOutputs& outputs);

}  // namespace mdlm_fast
