// Scoring the rows of an LM head without its logits in memory: each tile of logits is scored while it is hot.
#pragma once

#include "linear_head.h"
#include "score_rows.h"

namespace mdlm_fast::cpu {

// Rows of logits that top-k and top-p search again and again are kept, this many bytes of them at a time.
constexpr std::int64_t kKeptBytes = std::int64_t{16} << 20;

// The rows of a request that are not padding, in groups that may be kept together when `keep` is set.
struct RowGroups {
  std::vector<std::int64_t> live;
  std::int64_t group_size;
  RowGroups(const ScoreRequest& request, const ScoreOptions& options);
};

// `request.logits` and `request.guidance` are views of hidden states. Needs gemm_kernels(head.dtype).
void linear_score_rows(const RowScorer& scorer, const ScoreRequest& request, const LinearHead& head,
                       const ScoreOutputs& outputs, const ParallelFor& parallel_for);

}  // namespace mdlm_fast::cpu
