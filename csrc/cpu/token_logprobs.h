// Log-probabilities of chosen tokens and their gradient: the CPU kernels. No torch here.
//
// Per row, over the allowed ids and with the maximum m at v*:  r = sum over v != v* of exp((z_v - m)/T),
//   logp = -(m - z_target)/T - log1p(r),   lse = m/T + log1p(r),   entropy = log1p(r) - moment/(1 + r).
// The maximum's own 1 never enters r, so confident rows keep their digits. Tiles of 2048 columns are summed in fp32 in
// a fixed order (score_tile.h) and merged in fp64 in id order: the result depends on nothing but the row.
// The gradient, with p = exp(z/T - lse):  dz = (g (onehot - p) - g_H p (log p + H)) / T.
#pragma once

#include <cstdint>
#include <vector>

#include "score_kernels.h"

namespace mdlm_fast::cpu {

// Rows of logits in a tensor [N, V] or [B, L, V]; flat row r is row r % rows_per_batch of batch r / rows_per_batch.
// Strides in elements; columns are contiguous. Column 0 has global id `vocab_start`, a multiple of 2048.
struct LogitRows {
  const void* data;
  DType dtype;
  std::int64_t rows_per_batch, batch_stride, row_stride;
  std::int64_t width;
  std::int64_t vocab_start;

  std::int64_t offset(std::int64_t row) const {
    return row / rows_per_batch * batch_stride + row % rows_per_batch * row_stride;
  }
  const void* row(std::int64_t row) const { return static_cast<const char*>(data) + offset(row) * size_of(dtype); }
  std::int64_t tiles() const { return (width + kTileColumns - 1) / kTileColumns; }
};

// The ids that normalise: all below `limit` but the forbidden ones.
struct AllowedIds {
  std::vector<std::int64_t> forbidden;  // ascending, unique
  std::int64_t limit;
};

// One tile of one row, ready for the kernels: 2048 columns or fewer, whole blocks of 64; what is not allowed is -inf.
// It may be copied into `scratch`, kTileColumns elements. `columns` is 0 when no id of the tile is below the limit.
const void* allowed_tile(const void* row, DType dtype, std::int64_t width, std::int64_t vocab_start, std::int64_t tile,
                         const AllowedIds& ids, void* scratch, int* columns);

// The statistics that log-probabilities need, of one tile; only max, argmax and the tempered sums are filled.
TileStats logprob_tile(const void* row, DType dtype, std::int64_t width, std::int64_t vocab_start, std::int64_t tile,
                       const AllowedIds& ids, float inverse_temperature, bool need_entropy);

struct RowLogprob {
  double logp, entropy, lse;
};

// Merges the tiles of one row, in order. `target_logit` is in the logits' units, -inf for a target that is not allowed.
// A row that cannot be used has logp NaN and its fault in lse: NaN for a NaN, +inf for a +inf, -inf for no candidate.
RowLogprob merge_logprob(const TileStats* tiles, std::int64_t num_tiles, float target_logit, double temperature,
                         bool need_entropy);

// One entry of a row as a float; -inf where the id is not allowed.
float allowed_logit(const void* row, DType dtype, std::int64_t vocab_start, std::int64_t id, const AllowedIds& ids);

// What the gradient of one row needs beside its logits.
struct RowGradient {
  float grad_logp, grad_entropy, entropy;
  double lse, temperature;
  std::int64_t target;  // global id
};

// Gradient of one tile, `columns` real columns, for `count` targets of the same row: the sum of their gradients, formed
// in fp32, is written to `out` in the logits' dtype, which may be the logits' own memory.
void gradient_tile(const void* row, void* out_row, DType dtype, std::int64_t width, std::int64_t vocab_start,
                   std::int64_t tile, const AllowedIds& ids, const RowGradient* gradients, std::int64_t count,
                   bool need_entropy);

}  // namespace mdlm_fast::cpu
