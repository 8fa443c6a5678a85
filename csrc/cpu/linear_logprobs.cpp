#include "linear_logprobs.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace mdlm_fast::cpu {
namespace {

// Rows of one task: enough that packing a tile of the weight for them costs little beside multiplying it.
constexpr std::int64_t kRowsPerTask = 256;

}  // namespace

void for_each_logit_tile(const LinearHead& head, const HiddenRows& hidden, std::int64_t count, std::int64_t begin_tile,
                         std::int64_t end_tile, const ParallelFor& parallel_for, const LogitTileBody& body) {
  const std::int64_t groups = (count + kRowsPerTask - 1) / kRowsPerTask, tiles = end_tile - begin_tile;
  parallel_for(0, groups * tiles, 1, [&](std::int64_t begin, std::int64_t end) {
    HeadTile computed(head);
    const std::int64_t most = head.rows_at_once(), row_bytes = kTileColumns * head.element();
    Buffer<char> logits(std::min(count, most) * row_bytes);
    std::int64_t loaded = -1;
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t tile = begin_tile + task / groups, group = task % groups * kRowsPerTask;
      const std::int64_t end_row = std::min(count, group + kRowsPerTask);
      if (count > most && tile != loaded) computed.load(loaded = tile);
      for (std::int64_t first = group; first < end_row; first += most) {
        const std::int64_t rows = std::min(most, end_row - first);
        if (count > most) {
          computed.multiply(hidden, first, rows, logits.data());
        } else {
          computed.stream(tile, hidden, nullptr, first, rows, logits.data(), nullptr);
        }
        for (std::int64_t n = 0; n < rows; ++n) body(first + n, tile, logits.data() + n * row_bytes);
      }
    }
  });
}

void linear_logprob_tiles(const LinearHead& head, const LogprobRows& rows, bool need_entropy, TileStats* stats,
                          float* target_logit, const ParallelFor& parallel_for) {
  std::fill(target_logit, target_logit + rows.count, -std::numeric_limits<float>::infinity());
  for_each_logit_tile(
      head, rows.hidden, rows.count, 0, head.tiles(), parallel_for,
      [&](std::int64_t n, std::int64_t tile, const void* z) {
        const std::int64_t first = tile * kTileColumns, columns = head.columns(tile), target = rows.targets[n];
        stats[n * head.tiles() + tile] =
            logprob_tile(z, head.dtype, columns, first, 0, rows.ids, 1.0f / rows.temperatures[n], need_entropy);
        if (target >= first && target < first + columns)
          target_logit[n] = allowed_logit(z, head.dtype, first, target, rows.ids);
      });
}

}  // namespace mdlm_fast::cpu
