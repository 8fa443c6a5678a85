// The gradient of log-probabilities and entropies to logits: parameters and launchers.
#pragma once

#include <cstdint>

#include "runtime.h"
#include "score_partials.h"

namespace mdlm_fast::cuda {

// N scores of the distributions of rows of logits, and what arrives for them from above.
struct GradientInputs {
  std::int64_t count;              // N
  const float* grad_logp;          // [N]
  const float* grad_entropy;       // [N] or null
  const std::int64_t* targets;     // [N], global ids
  const std::int32_t* rows;        // [N], -1 = padding
  const float* temperature;        // [1] or [N]
  int temperature_stride;          // 0 for [1], 1 for [N]
  const float* entropy;            // [N] or null
  const double* lse;               // [N]
  const std::int64_t* forbidden;   // [num_forbidden], global ids, any order
  int num_forbidden;
  int vocab_limit;                 // global ids at or above it are not in the distribution
};

// What the pass over the logits needs of one score; 32 bytes, read as two vectors.
struct ScoreGradient;
inline constexpr std::int64_t kScoreGradientBytes = 32;

struct LogitGradientParams {
  GradientInputs inputs;
  ElementType type;
  LogitRows logits;                // `aligned` is not used
  std::int64_t num_rows;           // M
  int width;                       // V, columns of a row
  int vocab_start;                 // global id of column 0
  void* gradient;                  // [M, V] in the type of the logits, written all over; may be the logits themselves
  std::int64_t gradient_stride;    // between its rows, in elements
  ScoreGradient* scores;           // [N]
  std::int32_t* lists;             // [2 M + N], or null: row i has score i and no other
};

// Row r's gradient is the sum over the scores of row r, in fp32 and in the order of the scores. Rows without a score
// become zero, and so do ids outside the distribution.
cudaError_t logit_gradient(const LogitGradientParams& params, cudaStream_t stream);

}  // namespace mdlm_fast::cuda
