// From the statistics of tiles to token, log-probabilities, margin and entropy: parameters and launcher.
#pragma once

#include "score_partials.h"

namespace mdlm_fast::cuda {

// Bits of `stats`; the token is always there.
enum Stat : int { kToken = 1, kLogp = 2, kLogpTempered = 4, kMargin = 8, kEntropy = 16 };

// What a token below 0 means: padding, NaN or +inf in the row, no candidate left.
enum RowCode : int { kPaddingRow = -1, kNanRow = -2, kInfRow = -3, kEmptyRow = -4 };

struct FinishOptions {
  int stats;             // Stat bits
  bool stats_tempered;   // margin and entropy of the tempered and filtered distribution
  bool needs_tempered;   // some statistic that is asked for is of that distribution
  bool sample;           // rows with a temperature above 0 draw their token
  bool filtered;         // top-k or top-p is on
  std::int64_t top_k;    // 0: off
  double top_p;          // 1: off
};

inline FinishOptions finish_options(int stats, bool stats_tempered, bool sample, std::int64_t top_k, double top_p) {
  const bool shape = (stats & (kMargin | kEntropy)) != 0;
  return {stats, stats_tempered, (stats & kLogpTempered) != 0 || (stats_tempered && shape),
          sample, top_k > 0 || top_p < 1.0, top_k, top_p};
}

struct FinishScoresParams {
  ScoreSource source;
  FinishOptions options;
  const float* partials;             // [C, tiles, 8]
  const float* tempered_rest;        // [C, tiles] as score_partials writes it, or null: formed again where it is needed
  const std::int32_t* row_position;  // [C]
  const std::int64_t* seeds;         // [B]
  const std::int32_t* step;          // [1] or [B]
  int step_stride;                   // 0 for [1], 1 for [B]
  float* workspace;                  // [workspace_floats], 16-byte aligned
  std::int64_t* token;               // [C]
  float *logp, *logp_tempered, *margin, *entropy;  // [C] each, null where not asked for
};

// Room for the records of tiles that are scored a second time, over what the filters keep or for a tempered normaliser
// that is not known, and for the filters' pivots; 0 where that is not needed.
std::int64_t workspace_floats(const FinishScoresParams& params);

// Whether nothing draws and nothing is scored again: then the logits are not read.
inline bool needs_records_alone(const FinishScoresParams& params) {
  return !params.options.sample && workspace_floats(params) == 0;
}

cudaError_t finish_scores(const FinishScoresParams& params, cudaStream_t stream);

}  // namespace mdlm_fast::cuda
