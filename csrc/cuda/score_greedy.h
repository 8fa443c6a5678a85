// Rows that neither draw nor filter, from logits to tokens in one launch: launcher.
#pragma once

#include "finish_scores.h"

namespace mdlm_fast::cuda {

// The same results as score_partials and finish_scores one after the other. `finish` needs records alone
// (needs_records_alone), which lie where `wanted` says.
cudaError_t score_greedy(const ScorePartialsParams& wanted, const FinishScoresParams& finish, cudaStream_t stream);

}  // namespace mdlm_fast::cuda
