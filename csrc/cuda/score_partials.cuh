// One warp scores one tile of one row; nothing is shared between warps.
#pragma once

#include "score_tile.cuh"

namespace mdlm_fast::cuda {

// Threads of a block, and blocks that a multiprocessor is to hold: a tile fits the registers that leaves each thread.
inline constexpr int kPartialsThreads = 128;
template <class Stored>
inline constexpr int kPartialsBlocks = sizeof(Stored) == 2 ? 7 : 3;

// Tile j of row number rows[slot].
template <class Stored, Reading kReading, bool kMoment>
__device__ __forceinline__ void score_one_tile(const ScorePartialsParams& params, unsigned slot, int j, int lane) {
  const ScoreSource& source = params.source;
  const unsigned index = slot * source.tiles + j;
  const std::int32_t row = load_uniform(source.rows + slot);
  if (row < 0) {
    if (lane == 0) store_partial(params.partials + std::size_t{index} * kPartialFields, empty_partial());
    return;
  }
  const float t = unit_temperature(load_uniform(source.temperature + load_uniform(source.row_sequence + slot)));
  const StatisticsRequest request{t, params.mass && t != 1.0f, params.tempered_moment, params.second};
  score_tile<kMoment, false>(RowReader<Stored, kReading>(source, slot, row), source, j, request, -kInfinity,
                             {params.partials, params.tempered_rest, index}, lane);
}

// Grid: (C, tiles / warps of a block).
template <class Stored, Reading kReading, bool kMoment>
__global__ void __launch_bounds__(kPartialsThreads, kPartialsBlocks<Stored>)
    score_partials_kernel(const ScorePartialsParams params) {
  const int j = static_cast<int>((blockIdx.y * blockDim.x + threadIdx.x) / kWarpSize);
  if (j >= params.source.tiles) return;
  score_one_tile<Stored, kReading, kMoment>(params, blockIdx.x, j, static_cast<int>(threadIdx.x % kWarpSize));
}

}  // namespace mdlm_fast::cuda
