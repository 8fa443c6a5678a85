// Log-probabilities of given tokens: parameters and launchers.
#pragma once

#include <cstdint>

#include "runtime.h"
#include "score_partials.h"

namespace mdlm_fast::cuda {

// N scores; source.rows [N], source.capacity = N. Guidance, row_sequence and temperature of the source are not used.
struct TokenLogprobsParams {
  ScoreSource source;
  const std::int64_t* targets;     // [N]
  const float* temperature;        // [1] or [N]
  int temperature_stride;          // 0 for [1], 1 for [N]
  float* records;                  // [N, tiles, 4], written and read
  float* logp;                     // [N]
  float* entropy;                  // [N] or null
  double* lse;                     // [N]
};

// Two launches: the records of all tiles, then their merge.
cudaError_t token_logprobs(const TokenLogprobsParams& params, cudaStream_t stream);

// The same from partials [N, tiles, 8] of score_partials with stats_tempered, of which it reads `top`, `mass_rest` and
// `moment`. The normaliser holds the candidates alone, so `top` is the best candidate.
struct MergeLogprobsParams {
  std::int64_t count;              // N
  int tiles;
  const float* partials;           // [N, tiles, 8]
  const float* target_logits;      // [N], -inf for a target that is not allowed
  const std::int32_t* rows;        // [N], -1 = padding
  const float* temperature;        // [1] or [N]
  int temperature_stride;
  float* logp;                     // [N]
  float* entropy;                  // [N] or null
  double* lse;                     // [N]
};

cudaError_t merge_logprobs(const MergeLogprobsParams& params, cudaStream_t stream);

}  // namespace mdlm_fast::cuda
