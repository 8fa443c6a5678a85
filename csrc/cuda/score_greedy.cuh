// Greedy rows in one cooperative launch: the warps of the grid share out the tiles, wait for each other, and share out
// the rows. Which warp does what changes no number: a tile's and a row's are formed by one warp in one order.
#pragma once

#include "finish_greedy.cuh"
#include "score_partials.cuh"
#include "shared.cuh"

namespace mdlm_fast::cuda {

// Grid: as many blocks as run at once, or fewer.
template <class Stored, Reading kReading, bool kMoment>
__global__ void __launch_bounds__(kPartialsThreads, kPartialsBlocks<Stored>)
    score_greedy_kernel(const ScorePartialsParams wanted, const FinishScoresParams finish) {
  const ScoreSource& source = wanted.source;
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  // From lane 0, so that the compiler knows it to be the same in all lanes.
  const unsigned warp = __shfl_sync(kFullWarp, threadIdx.x / kWarpSize, 0), warps = blockDim.x / kWarpSize, all = gridDim.x * warps;
  const unsigned capacity = static_cast<unsigned>(source.capacity), tiles = static_cast<unsigned>(source.tiles);
#pragma unroll 1
  for (unsigned index = blockIdx.x * warps + warp; index < capacity * tiles; index += all)
    score_one_tile<Stored, kReading, kMoment>(wanted, index / tiles, static_cast<int>(index % tiles), lane);
  grid_barrier();
  // Neighbouring rows to different blocks: few rows then have a multiprocessor each.
#pragma unroll 1
  for (unsigned slot = warp * gridDim.x + blockIdx.x; slot < capacity; slot += all)
    finish_greedy_row(finish, slot, lane);
}

}  // namespace mdlm_fast::cuda
