// Statistics of every tile of every row: parameters and launcher of score_partials.
#pragma once

#include <cstdint>

#include "runtime.h"

namespace mdlm_fast::cuda {

enum class ElementType { kFloat32, kBFloat16, kFloat16 };

// Rows of [N, V] or [B, L, V], strides in elements, columns with stride 1. `aligned`: every row starts at a multiple of
// 16 bytes.
struct LogitRows {
  const void* data;
  int rows_per_batch;
  bool aligned;
  std::int64_t batch_stride, row_stride;
};

// What the scoring kernels read: the rows, which of their ids are candidates, and guidance.
struct ScoreSource {
  ElementType type;
  LogitRows logits;
  int width;                         // V, columns of a row
  int tiles;                         // of a row
  int vocab_start;                   // global id of column 0, a multiple of 2048
  int vocab_limit;                   // global ids at or above it are no candidates
  const std::int64_t* forbidden;     // [num_forbidden], global ids
  int num_forbidden;
  bool normalize_all;                // ids that are no candidates stay in the normaliser
  LogitRows guidance;                // data null: none
  float own_scale, guidance_scale;   // s + 1 and s of (s + 1) logits - s guidance
  std::int64_t capacity;             // C
  const std::int32_t* rows;          // [C], -1 = padding
  const std::int32_t* guidance_rows; // [C]
  const std::int32_t* row_sequence;  // [C]
  const float* temperature;          // [B], 0 = greedy
};

struct ScorePartialsParams {
  ScoreSource source;
  bool second, mass, moment;         // which of the fields that cost something are wanted
  bool tempered_moment;              // the moment is of the tempered distribution
  float* partials;                   // [C, tiles, 8]
  float* tempered_rest;              // [C, tiles], the normaliser's rest with exponents divided by T, or null
};

cudaError_t score_partials(const ScorePartialsParams& params, cudaStream_t stream);

}  // namespace mdlm_fast::cuda
