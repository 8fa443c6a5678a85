// One warp scores one tile of one row; nothing is shared between warps.
#pragma once

#include "read_partial.cuh"

namespace mdlm_fast::cuda {

// Grid: (C, tiles / warps of a block).
template <class Stored, Reading kReading, bool kMoment>
__global__ void __launch_bounds__(128, sizeof(RegisterType<Stored, kReading>) == 2 ? 7 : 4) score_partials_kernel(const ScorePartialsParams params) {
  const ScoreSource& source = params.source;
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  const std::int64_t slot = blockIdx.x;
  const int j = static_cast<int>((blockIdx.y * blockDim.x + threadIdx.x) / kWarpSize);
  if (j >= source.tiles) return;

  Partial partial = empty_partial();
  float tempered_rest = 0.0f;
  const std::int32_t row = load_constant(source.rows + slot);
  if (row >= 0) {
    const RowReader<Stored, kReading> reader(source, slot, row);
    const float t = unit_temperature(load_constant(source.temperature + load_constant(source.row_sequence + slot)));
    const StatisticsRequest request{t, params.mass && t != 1.0f, params.tempered_moment, params.second};
    partial = read_partial<kMoment, false>(reader, source, j, request, -kInfinity, lane, &tempered_rest);
  }
  if (lane == 0) {
    store_partial(params.partials + (slot * source.tiles + j) * kPartialFields, partial);
    if (params.tempered_rest != nullptr) store(params.tempered_rest + slot * source.tiles + j, tempered_rest);
  }
}

}  // namespace mdlm_fast::cuda
