// The kernels of finish_scores: one warp for a row whose records say enough, one block for a row whose tiles are scored
// again.
#pragma once

#include "../common/philox.h"
#include "filter_pivot.cuh"
#include "score_tile.cuh"

namespace mdlm_fast::cuda {

__device__ __forceinline__ void write_score(const FinishScoresParams& params, unsigned slot, const RowScore& score) {
  store(params.token + slot, score.token);
  if (params.logp != nullptr) store(params.logp + slot, score.logp);
  if (params.logp_tempered != nullptr) store(params.logp_tempered + slot, score.logp_tempered);
  if (params.margin != nullptr) store(params.margin + slot, score.margin);
  if (params.entropy != nullptr) store(params.entropy + slot, score.entropy);
}

// The row's uniform number (mdlm_fast/rng.py).
__device__ __forceinline__ double token_uniform(const FinishScoresParams& params, unsigned slot, int sequence) {
  return philox_uniform(static_cast<std::uint64_t>(load_constant(params.seeds + sequence)),
                        static_cast<std::uint32_t>(load_constant(params.row_position + slot)),
                        static_cast<std::uint32_t>(load_constant(params.step + sequence * params.step_stride)),
                        kTokenStream);
}

__device__ __forceinline__ const float* tempered_rest_of(const FinishScoresParams& params, unsigned slot) {
  return params.tempered_rest == nullptr ? nullptr : params.tempered_rest + std::int64_t{slot} * params.source.tiles;
}

// Grid: C. No row draws.
__global__ void __launch_bounds__(32) finish_greedy_kernel(const FinishScoresParams params) {
  const unsigned slot = blockIdx.x;
  const ScoreSource& source = params.source;
  const int lane = static_cast<int>(threadIdx.x);
  RowScore score = padding_score();
  if (load_constant(source.rows + slot) >= 0) {
    const float temperature = unit_temperature(load_constant(source.temperature + load_constant(source.row_sequence + slot)));
    score = finish_greedy(params.options, params.partials + std::int64_t{slot} * source.tiles * kPartialFields,
                          tempered_rest_of(params, slot), source.tiles, source.normalize_all, temperature, lane);
  }
  if (lane == 0) write_score(params, slot, score);
}

// Grid: C. Rows with a temperature above 0 draw.
template <class Stored, Reading kReading>
__global__ void __launch_bounds__(32) finish_sampled_kernel(const FinishScoresParams params) {
  const unsigned slot = blockIdx.x;
  const ScoreSource& source = params.source;
  const int lane = static_cast<int>(threadIdx.x);
  const std::int32_t row = load_constant(source.rows + slot);
  if (row < 0) {
    if (lane == 0) write_score(params, slot, padding_score());
    return;
  }
  const float* records = params.partials + std::int64_t{slot} * source.tiles * kPartialFields;
  const int sequence = load_constant(source.row_sequence + slot);
  const float given = load_constant(source.temperature + sequence), temperature = unit_temperature(given);
  const RowMaxima maxima = row_maxima(records, source.tiles, lane);
  RowScore score = failed_score(maxima.code);
  if (maxima.code == 0) {
    const TemperedRow tempered =
        unfiltered(records, tempered_rest_of(params, slot), source.normalize_all, maxima, temperature);
    Draw chosen{maxima.best_id, maxima.best};
    if (given > 0.0f)
      chosen = draw_token(RowReader<Stored, kReading>(source, slot, row), source, tempered, -kInfinity,
                          token_uniform(params, slot, sequence), lane);
    score = describe(params.options, records, source.tiles, maxima, tempered, chosen.token, chosen.logit, lane);
  }
  if (lane == 0) write_score(params, slot, score);
}

// Grid: C. Rows are filtered, or their tempered normaliser is not known: their tiles are scored again into the workspace.
template <class Stored, Reading kReading>
__global__ void __launch_bounds__(512) finish_filtered_kernel(const FinishScoresParams params) {
  const unsigned slot = blockIdx.x;
  const ScoreSource& source = params.source;
  const FinishOptions& options = params.options;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const std::int32_t row = load_constant(source.rows + slot);
  if (row < 0) {
    if (threadIdx.x == 0) write_score(params, slot, padding_score());
    return;
  }
  const std::int64_t first_record = std::int64_t{slot} * source.tiles * kPartialFields;
  const float* records = params.partials + first_record;
  const int sequence = load_constant(source.row_sequence + slot);
  const float given = load_constant(source.temperature + sequence), temperature = unit_temperature(given);
  const RowMaxima maxima = row_maxima(records, source.tiles, lane);
  if (maxima.code != 0) {
    if (threadIdx.x == 0) write_score(params, slot, failed_score(maxima.code));
    return;
  }

  const RowReader<Stored, kReading> reader(source, slot, row);
  const bool sampled = options.sample && given > 0.0f;
  TemperedRow tempered = unfiltered(records, tempered_rest_of(params, slot), source.normalize_all, maxima, temperature);
  float pivot = -kInfinity;
  const bool filtered = options.filtered && (sampled || options.needs_tempered);
  if (filtered || (options.needs_tempered && tempered.rest == nullptr)) {
    __shared__ PivotMemory memory;
    if (filtered) pivot = filter_pivot(reader, source, options, records, maxima.best, temperature, memory);
    float* again = params.workspace + first_record;
    const StatisticsRequest request{temperature, temperature != 1.0f, options.stats_tempered, true};
    for (int j = warp; j < source.tiles; j += static_cast<int>(blockDim.x) / kWarpSize) {
      if (source.normalize_all || load_partial(records + std::int64_t{j} * kPartialFields).best >= pivot)
        score_tile<true, true>(reader, source, j, request, pivot, {again, nullptr, static_cast<unsigned>(j)}, lane);
      else if (lane == 0)
        store_partial(again + std::int64_t{j} * kPartialFields, empty_partial());
    }
    __syncthreads();
    tempered = {again, again + kRestField, kPartialFields, row_maxima(again, source.tiles, lane), temperature};
  }
  if (warp != 0) return;
  Draw chosen{maxima.best_id, maxima.best};
  if (sampled) chosen = draw_token(reader, source, tempered, pivot, token_uniform(params, slot, sequence), lane);
  const RowScore score = describe(options, records, source.tiles, maxima, tempered, chosen.token, chosen.logit, lane);
  if (lane == 0) write_score(params, slot, score);
}

}  // namespace mdlm_fast::cuda
