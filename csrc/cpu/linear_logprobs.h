// Log-probabilities of chosen tokens under an LM head, and their gradient, without the logits in memory.
//
// Forward: a tile of logits is reduced to its statistics while it is hot. Backward: a chunk of the vocabulary at a time,
// the logits Z = X W^T + b are computed again and become dZ, rounded to the storage type as any backward of the logits
// would be; then dW = dZ^T X and db, written once, and dX += dZ W, accumulated in fp32 over the whole vocabulary.
// Each element of every sum has one order, whatever the threads.
#pragma once

#include <functional>

#include "linear_head.h"
#include "score_rows.h"
#include "token_logprobs.h"

namespace mdlm_fast::cpu {

// N rows of hidden states and what is looked for in their logits.
struct LogprobRows {
  const HiddenRows& hidden;
  std::int64_t count;
  const std::int64_t* targets;
  const float* temperatures;
  const AllowedIds& ids;
};

// Computes the logits of every row for tiles [begin_tile, end_tile), in parallel, and calls body(row, tile, logits) for
// each: 2048 entries, or those of the last tile.
using LogitTileBody = std::function<void(std::int64_t, std::int64_t, const void*)>;
void for_each_logit_tile(const LinearHead& head, const HiddenRows& hidden, std::int64_t count, std::int64_t begin_tile,
                         std::int64_t end_tile, const ParallelFor& parallel_for, const LogitTileBody& body);

// stats [N, tiles], target_logit [N] (-inf where the target is not allowed).
void linear_logprob_tiles(const LinearHead& head, const LogprobRows& rows, bool need_entropy, TileStats* stats,
                          float* target_logit, const ParallelFor& parallel_for);

// Where the gradients go; null where not needed. grad_weight [V, H] and grad_bias [V] contiguous, in the storage type;
// grad_hidden fp32 [N, H], zero before.
struct LinearGradients {
  float* grad_hidden;
  void* grad_weight;
  void* grad_bias;
};

void linear_logprob_gradients(const LinearHead& head, const LogprobRows& rows, const RowGradient* gradients,
                              bool need_entropy, const LinearGradients& out, const ParallelFor& parallel_for);

}  // namespace mdlm_fast::cpu
