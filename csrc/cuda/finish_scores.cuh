// Finishing rows, one warp each: from their records alone, or with a draw or records of a second scoring.
#pragma once

#include "../common/philox.h"
#include "draw_token.cuh"
#include "finish_greedy.cuh"
#include "rescore_rows.cuh"

namespace mdlm_fast::cuda {

// What the row's uniform number is made of (mdlm_fast/rng.py).
struct RandomPlace {
  std::uint64_t seed;
  std::uint32_t position, step;
  __device__ __forceinline__ double uniform() const { return philox_uniform(seed, position, step, kTokenStream); }
};

__device__ __forceinline__ RandomPlace random_place(const FinishScoresParams& params, unsigned slot, int sequence) {
  return {static_cast<std::uint64_t>(load_uniform(params.seeds + sequence)),
          static_cast<std::uint32_t>(load_uniform(params.row_position + slot)),
          static_cast<std::uint32_t>(load_uniform(params.step + sequence * params.step_stride))};
}

// Grid: C. No row draws.
__global__ void __launch_bounds__(32) finish_greedy_kernel(const FinishScoresParams params) {
  finish_greedy_row(params, blockIdx.x, static_cast<int>(threadIdx.x));
}

// Grid: C. Rows with a temperature above 0 draw, if asked to; rows that were scored again are read from there.
template <class Stored, Reading kReading>
__global__ void __launch_bounds__(32, 8) finish_kernel(const FinishScoresParams params) {
  const unsigned slot = blockIdx.x;
  const ScoreSource& source = params.source;
  const int lane = static_cast<int>(threadIdx.x);
  const std::int32_t row = load_uniform(source.rows + slot), sequence = load_uniform(source.row_sequence + slot);
  if (row < 0) {
    if (lane == 0) write_score(params, slot, padding_score());
    return;
  }
  const std::int64_t first_record = std::int64_t{slot} * source.tiles * kPartialFields;
  const float* records = params.partials + first_record;
  const float given = load_uniform(source.temperature + sequence), temperature = unit_temperature(given);
  const RandomPlace place = random_place(params, slot, sequence);
  const RowMaxima maxima = row_maxima(records, source.tiles, lane);
  RowScore score = failed_score(maxima.code);
  if (maxima.code == 0) {
    TemperedRow tempered =
        unfiltered(records, tempered_rest_of(params, slot), source.normalize_all, maxima, temperature);
    float pivot = -kInfinity;
    const bool sampled = params.options.sample && given > 0.0f;
    if (is_rescored(params, sampled, temperature)) {
      const float* again = params.workspace + first_record;
      tempered = {again, again + kRestField, kPartialFields, row_maxima(again, source.tiles, lane), temperature};
      pivot = load_uniform(pivots_of(params) + slot);
    }
    TokenDraw<RowReader<Stored, kReading>> draw;
    if (sampled)
      draw.choose_tile(RowReader<Stored, kReading>(source, slot, row), source, tempered, place.uniform(), lane);
    // Meanwhile the tile arrives.
    const RowSums sums = row_sums(params.options, records, source.tiles, maxima, tempered, lane);
    Draw chosen{maxima.best_id, maxima.best};
    if (sampled) chosen = draw.choose_column(source, temperature, pivot, lane);
    score = describe(params.options, maxima, tempered, sums, chosen.token, chosen.logit);
  }
  if (lane == 0) write_score(params, slot, score);
}

}  // namespace mdlm_fast::cuda
