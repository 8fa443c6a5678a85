// Finishing rows, one warp each: from their records alone, or with a draw or records of a second scoring.
#pragma once

#include "../common/philox.h"
#include "draw_token.cuh"
#include "rescore_rows.cuh"

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
  return philox_uniform(static_cast<std::uint64_t>(load_uniform(params.seeds + sequence)),
                        static_cast<std::uint32_t>(load_uniform(params.row_position + slot)),
                        static_cast<std::uint32_t>(load_uniform(params.step + sequence * params.step_stride)),
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
  if (load_uniform(source.rows + slot) >= 0) {
    const int sequence = load_uniform(source.row_sequence + slot);
    const float temperature = unit_temperature(load_uniform(source.temperature + sequence));
    score = finish_greedy(params.options, params.partials + std::int64_t{slot} * source.tiles * kPartialFields,
                          tempered_rest_of(params, slot), source.tiles, source.normalize_all, temperature, lane);
  }
  if (lane == 0) write_score(params, slot, score);
}

// Grid: C. Rows with a temperature above 0 draw, if asked to; rows that were scored again are read from there.
template <class Stored, Reading kReading>
__global__ void __launch_bounds__(32, 16) finish_kernel(const FinishScoresParams params) {
  const unsigned slot = blockIdx.x;
  const ScoreSource& source = params.source;
  const int lane = static_cast<int>(threadIdx.x);
  const std::int32_t row = load_uniform(source.rows + slot);
  if (row < 0) {
    if (lane == 0) write_score(params, slot, padding_score());
    return;
  }
  const std::int64_t first_record = std::int64_t{slot} * source.tiles * kPartialFields;
  const float* records = params.partials + first_record;
  const int sequence = load_uniform(source.row_sequence + slot);
  const float given = load_uniform(source.temperature + sequence), temperature = unit_temperature(given);
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
    Draw chosen{maxima.best_id, maxima.best};
    if (sampled)
      chosen = draw_token(RowReader<Stored, kReading>(source, slot, row), source, tempered, pivot,
                          token_uniform(params, slot, sequence), lane);
    score = describe(params.options, records, source.tiles, maxima, tempered, chosen.token, chosen.logit, lane);
  }
  if (lane == 0) write_score(params, slot, score);
}

}  // namespace mdlm_fast::cuda
