// Finishing rows that neither draw nor need a second scoring, one warp each, from their records alone.
#pragma once

#include "finish_row.cuh"
#include "score_source.cuh"

namespace mdlm_fast::cuda {

__device__ __forceinline__ void write_score(const FinishScoresParams& params, unsigned slot, const RowScore& score) {
  store(params.token + slot, score.token);
  if (params.logp != nullptr) store(params.logp + slot, score.logp);
  if (params.logp_tempered != nullptr) store(params.logp_tempered + slot, score.logp_tempered);
  if (params.margin != nullptr) store(params.margin + slot, score.margin);
  if (params.entropy != nullptr) store(params.entropy + slot, score.entropy);
}

__device__ __forceinline__ const float* tempered_rest_of(const FinishScoresParams& params, unsigned slot) {
  return params.tempered_rest == nullptr ? nullptr : params.tempered_rest + std::int64_t{slot} * params.source.tiles;
}

__device__ __forceinline__ void finish_greedy_row(const FinishScoresParams& params, unsigned slot, int lane) {
  const ScoreSource& source = params.source;
  const std::int32_t row = load_uniform(source.rows + slot), sequence = load_uniform(source.row_sequence + slot);
  RowScore score = padding_score();
  if (row >= 0) {
    const float temperature = unit_temperature(load_uniform(source.temperature + sequence));
    score = finish_greedy(params.options, params.partials + std::int64_t{slot} * source.tiles * kPartialFields,
                          tempered_rest_of(params, slot), source.tiles, source.normalize_all, temperature, lane);
  }
  if (lane == 0) write_score(params, slot, score);
}

}  // namespace mdlm_fast::cuda
