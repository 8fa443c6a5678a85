// Giving the least sure committed positions back: a block per sequence. The meaning is written in
// mdlm_fast/ops/reference/remask_.py.
#pragma once

#include "memory.cuh"
#include "rank.cuh"
#include "select_commit.h"
#include "shared.cuh"

namespace mdlm_fast::cuda {

// Grid: a block per sequence. keys [L] lie in shared memory, or [B, L] in `scratch` where that is too small.
__global__ void __launch_bounds__(kRankThreads)
    remask_kernel(const __grid_constant__ Remask args, std::uint32_t* scratch) {
  __shared__ RankExchange exchange;
  const int length = static_cast<int>(args.length);
  const std::int64_t sequence = blockIdx.x, first = sequence * args.length;
  std::uint32_t* keys = scratch ? scratch + first : shared_memory<std::uint32_t>();
  int masked = 0, candidates = 0;
  for (int l = static_cast<int>(threadIdx.x); l < length; l += kRankThreads) {
    const bool is_masked = load(args.masked + first + l) != 0;
    const bool candidate = !is_masked && load_constant(args.scope + first + l) != 0;
    // Among equals the later position goes first, so the keys lie in reverse.
    keys[length - 1 - l] = candidate ? ascending_key(load_constant(args.running + first + l)) : 0;
    masked += is_masked;
    candidates += candidate;
  }
  masked = block_sum(masked, exchange).total;
  candidates = block_sum(candidates, exchange).total;
  const int count = load_constant(args.count + sequence);
  const Selection selection = select_best(keys, length, candidates, count, exchange);
  int taken = 0;
  for (int l = static_cast<int>(threadIdx.x); l < length; l += kRankThreads) {
    if (!selection.takes(keys[length - 1 - l], length - 1 - l)) continue;
    store(args.canvas + first + l, args.mask_id);
    store(args.masked + first + l, std::uint8_t{1});
    if (args.commit_step) store(args.commit_step + first + l, std::int16_t{-1});
    ++taken;
  }
  masked += block_sum(taken, exchange).total;
  if (threadIdx.x != 0) return;
  if (args.masks_left) store(args.masks_left + sequence, masked);
  if (args.done) store(args.done + sequence, static_cast<std::uint8_t>(masked == 0));
}

}  // namespace mdlm_fast::cuda
