// Scoring the tiles of a row a second time, by one block: over what top-k and top-p keep, or for a tempered normaliser
// that the records do not tell.
#pragma once

#include "filter_pivot.cuh"
#include "score_tile.cuh"

namespace mdlm_fast::cuda {

// The pivots of the rows, behind the records in the workspace: [C].
__device__ __forceinline__ float* pivots_of(const FinishScoresParams& params) {
  return params.workspace + params.source.capacity * params.source.tiles * kPartialFields;
}

__device__ __forceinline__ bool is_filtered(const FinishOptions& options, bool sampled) {
  return options.filtered && (sampled || options.needs_tempered);
}

__device__ __forceinline__ bool is_rescored(const FinishScoresParams& params, bool sampled, float temperature) {
  const bool unknown = params.source.normalize_all && params.tempered_rest == nullptr && temperature != 1.0f;
  return is_filtered(params.options, sampled) || (params.options.needs_tempered && unknown);
}

// Grid: C.
template <class Stored, Reading kReading>
__global__ void __launch_bounds__(512, 1) rescore_rows_kernel(const FinishScoresParams params) {
  const unsigned slot = blockIdx.x;
  const ScoreSource& source = params.source;
  const int lane = static_cast<int>(threadIdx.x % kWarpSize), warp = static_cast<int>(threadIdx.x / kWarpSize);
  const std::int32_t row = load_uniform(source.rows + slot);
  if (row < 0) return;
  const std::int64_t first_record = std::int64_t{slot} * source.tiles * kPartialFields;
  const float* records = params.partials + first_record;
  const float given = load_uniform(source.temperature + load_uniform(source.row_sequence + slot));
  const float temperature = unit_temperature(given);
  const bool sampled = params.options.sample && given > 0.0f;
  if (!is_rescored(params, sampled, temperature)) return;
  const RowMaxima maxima = row_maxima(records, source.tiles, lane);
  if (maxima.code != 0) return;

  const RowReader<Stored, kReading> reader(source, slot, row);
  __shared__ PivotMemory memory;
  float pivot = -kInfinity;
  if (is_filtered(params.options, sampled))
    pivot = filter_pivot(reader, source, params.options, records, maxima.best, temperature, memory);
  if (threadIdx.x == 0) store(pivots_of(params) + slot, pivot);
  float* again = params.workspace + first_record;
  const StatisticsRequest request{temperature, true, true, true};
  for (int j = warp; j < source.tiles; j += static_cast<int>(blockDim.x) / kWarpSize) {
    // Where ids that are no candidates count too, a tile below the pivot may still hold some.
    if (source.normalize_all || load_partial(records + std::int64_t{j} * kPartialFields).best >= pivot)
      score_tile<true, true>(reader, source, j, request, pivot, {again, nullptr, static_cast<unsigned>(j)}, lane);
    else if (lane == 0)
      store_partial(again + std::int64_t{j} * kPartialFields, empty_partial());
  }
}

}  // namespace mdlm_fast::cuda
