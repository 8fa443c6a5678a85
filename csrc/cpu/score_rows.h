// The scoring ops over all rows of a call, on all cores.
#pragma once

#include <functional>
#include <limits>

#include "score_row.h"

namespace mdlm_fast::cpu {

// Rows of a strided matrix [N, V] or [B, L, V]; the last stride is 1.
struct RowsView {
  const char* data = nullptr;
  std::int64_t inner = 1;           // L, or N
  std::int64_t outer_bytes = 0, inner_bytes = 0;
  const void* row(std::int64_t i) const { return data + i / inner * outer_bytes + i % inner * inner_bytes; }
};

// An LM head in place of logits: row = hidden . weight^T + bias, rounded to their dtype.
struct HeadView {
  const char* weight = nullptr;     // [V, H]
  const char* bias = nullptr;       // [V] or null
  std::int64_t width = 0, row_bytes = 0;
};

struct ScoreRequest {
  RowsView logits, guidance;        // with a head: hidden states; guidance.data null: no guidance
  HeadView head;                    // head.weight null: logits
  std::int64_t capacity;            // C
  const std::int32_t* rows;         // [C], -1 = padding
  const std::int32_t* guidance_rows;
  const std::int32_t* row_sequence;
  const std::int32_t* row_position;
  const float* temperature;         // [B]
  const std::int64_t* seeds;        // [B]
  const std::int32_t* step;         // [1] or [B]
  std::int64_t step_stride;         // 0 for [1], 1 for [B]
};

// [C] each; null where not asked for.
struct ScoreOutputs {
  std::int64_t* token;
  float *logp, *logp_tempered, *margin, *entropy;
};

// Large and aligned: one a thread, kept from call to call.
ScoreScratch& thread_scratch();
RowInputs row_inputs(const ScoreRequest& request, std::int64_t i);
void write_score(const ScoreOutputs& outputs, std::int64_t i, const RowScore& score);
constexpr RowScore kPaddingScore{kPaddingRow, -std::numeric_limits<float>::infinity(),
                                 -std::numeric_limits<float>::infinity(), 0.0f, 0.0f};

// Calls body(begin, end) over parts of [begin, end), `grain` or more at a time, on the threads of a pool.
using RangeBody = std::function<void(std::int64_t, std::int64_t)>;
using ParallelFor = std::function<void(std::int64_t, std::int64_t, std::int64_t, const RangeBody&)>;

void score_rows(const RowScorer& scorer, const ScoreRequest& request, const ScoreOutputs& outputs, int threads,
                const ParallelFor& parallel_for);

// partials: f32 [C, tiles, 8], fields as in the op's documentation.
void score_partials(const RowScorer& scorer, const ScoreRequest& request, float* partials,
                    const ParallelFor& parallel_for);
void finish_scores(const RowScorer& scorer, const ScoreRequest& request, const float* partials,
                   const ScoreOutputs& outputs, const ParallelFor& parallel_for);

}  // namespace mdlm_fast::cpu
