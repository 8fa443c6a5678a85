// From a tile of a row in global memory to its record, by one warp.
#pragma once

#include "partial.cuh"
#include "score_source.cuh"
#include "tile_statistics.cuh"

namespace mdlm_fast::cuda {

// Where the statistics of a tile go.
struct PartialPlace {
  float* records;        // [.., 8], 16-byte aligned
  float* tempered_rest;  // [..] or null: the normaliser's rest with exponents divided by T
  unsigned index;        // into both
};

// Scores tile j of a row. kFiltered: candidates below `pivot` are removed, and the record is of the tempered
// distribution.
//
// Where the normaliser holds more than the candidates the tile is read twice: first for the normaliser, then for the
// candidates. That is rare, as few tiles have ids that are no candidates; what the second pass writes is written again,
// so that no register is kept for it.
template <bool kMoment, bool kFiltered, class Reader>
__device__ __forceinline__ void score_tile(const Reader& reader, const ScoreSource& source, int j,
                                           const StatisticsRequest& request, float pivot, const PartialPlace& place,
                                           int lane) {
  using Registers = typename Reader::Registers;
#pragma unroll 1
  for (bool again = false;; again = true) {
    const int index = renewed(j), first_id = source.vocab_start + index * kTileColumns;
    Registers tile;
    reader.load(tile, index, lane);
    const ExcludedNumbers excluded =
        excluded_numbers<Registers>(exclusion_of(source), first_id, reader.count(index), lane);
    const bool candidates_only = again || !source.normalize_all;
    if (kFiltered || (excluded.any && candidates_only))
      remove_numbers(tile, excluded.mask,
                     [&](float z, bool out) { return out ? candidates_only : kFiltered && z < pivot; });

    TileStatistics found;
    if constexpr (kFiltered)
      found = tempered_statistics(tile, request.temperature, lane);
    else
      found = tile_statistics<kMoment>(tile, request, lane);
    const float best = found.maximum.value;
    const bool none = best == -kInfinity || found.maximum.lane < 0;
    const std::int32_t id = none ? -1 : first_id + found.maximum.template column<Registers>();
    if (lane == 0) {
      float* record = place.records + std::size_t{place.index} * kPartialFields;
      if (again) {
        store_candidates(record, best, id, found.maximum.second, found.tempered_rest);
      } else {
        store_partial(record, {best, id, best, id, found.maximum.second, found.rest, found.tempered_rest,
                               found.moment});
        if (place.tempered_rest != nullptr) store(place.tempered_rest + place.index, found.tempered_rest);
      }
    }
    if (!excluded.any || candidates_only) return;
  }
}

}  // namespace mdlm_fast::cuda
