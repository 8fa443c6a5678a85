// From a tile of a row in global memory to its record.
#pragma once

#include "partial.cuh"
#include "score_source.cuh"
#include "tile_statistics.cuh"

namespace mdlm_fast::cuda {

// The record of tile j of a row. kFiltered: candidates below `pivot` are removed. Where the normaliser holds more than the
// candidates the tile is read twice, which is rare: only tiles with ids that are no candidates, if those count.
template <bool kMoment, bool kFiltered, class Reader>
__device__ __forceinline__ Partial read_partial(const Reader& reader, const ScoreSource& source, int j,
                                                const StatisticsRequest& request, float pivot, int lane,
                                                float* tempered_rest) {
  using Registers = typename Reader::Registers;
  const int first_id = source.vocab_start + j * kTileColumns;
  Partial partial;
#pragma unroll 1
  for (bool again = false;; again = true) {
    Registers tile;
    reader.load(tile, j, lane);
    const std::uint64_t mask = excluded_numbers<Registers>(exclusion_of(source), first_id, reader.count(j), lane);
    const bool excluded = __any_sync(kFullWarp, mask != 0);
    const bool candidates_only = again || !source.normalize_all;
    if (kFiltered || (excluded && candidates_only))
      remove_numbers(tile, mask, [&](float z, bool out) { return out ? candidates_only : kFiltered && z < pivot; });

    const TileStatistics found = tile_statistics<kMoment>(tile, request, lane);
    const bool none = found.maximum.value == -kInfinity || found.maximum.vector == Registers::kVectors;
    const std::int32_t id = none ? -1 : first_id + found.maximum.template column<Registers>();
    if (!again) {
      partial.top = found.maximum.value;
      partial.top_id = id;
      partial.rest = found.rest;
      partial.moment = found.moment;
      *tempered_rest = found.tempered_rest;
    }
    partial.best = found.maximum.value;
    partial.best_id = id;
    partial.second = found.maximum.second;
    partial.mass_rest = found.tempered_rest;
    if (!excluded || candidates_only) return partial;
  }
}

}  // namespace mdlm_fast::cuda
