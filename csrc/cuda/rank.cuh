// Ranking the positions of one sequence within one block: order-preserving integer keys, the k best of them, a sort.
//
// Keys lie in memory that the block shares, one per position. Everything here is integer arithmetic, so the result is
// the same for any schedule of the threads.
#pragma once

#include "../common/ordered_key.h"
#include "intrinsics.cuh"

namespace mdlm_fast::cuda {

inline constexpr int kRankThreads = 512;  // of a block that ranks
inline constexpr int kRankWarps = kRankThreads / kWarpSize;
inline constexpr int kRadixBits = 8, kRadixBins = 1 << kRadixBits;

// The key of what ranks higher when it is larger. Not a number ranks with -inf. No key is 0, which is left to mean "not
// a candidate", and none is 0xffffffff.
__device__ __forceinline__ std::uint32_t descending_key(float value) {
  return ordered_key(value != value ? -kInfinity : value);
}

// The key of what ranks higher when it is smaller. Not a number ranks last.
__device__ __forceinline__ std::uint32_t ascending_key(float value) {
  return value != value ? 1u : ~ordered_key(value);
}

__device__ __forceinline__ float descending_value(std::uint32_t key) {
  return from_ordered_key(key);
}

__device__ __forceinline__ float ascending_value(std::uint32_t key) {
  return key == 1u ? as_float(0x7fffffffu) : descending_value(~key);
}

// What the threads of a ranking block tell each other.
struct RankExchange {
  std::uint32_t histogram[kRadixBins];
  int counts[kRankWarps];
  int bin, in_bin, remaining;  // of a radix pass
  int answer;
};

// The positions taken: keys above `bound`, and those equal to it at positions up to `last_tie`.
struct Selection {
  std::uint32_t bound;
  int last_tie;

  __device__ __forceinline__ bool takes(std::uint32_t key, int position) const {
    return key > bound || (key == bound && position <= last_tie);
  }
};

inline constexpr Selection kTakeNone{0xffffffffu, -1};
inline constexpr Selection kTakeAll{0, -1};

__device__ __forceinline__ int warp_of_thread() { return static_cast<int>(threadIdx.x) / kWarpSize; }
__device__ __forceinline__ int lane_of_thread() { return static_cast<int>(threadIdx.x) % kWarpSize; }

// Gives every thread the sum over the block, and the sum over the threads before it.
struct BlockSum {
  int before, total;
};
__device__ inline BlockSum block_sum(int value, RankExchange& exchange) {
  int inclusive = value;
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const int other = __shfl_up_sync(kFullWarp, inclusive, distance);
    inclusive += lane_of_thread() >= distance ? other : 0;
  }
  __syncthreads();  // the counts of the call before have been read
  if (lane_of_thread() == kWarpSize - 1) exchange.counts[warp_of_thread()] = inclusive;
  __syncthreads();
  const int count = lane_of_thread() < kRankWarps ? exchange.counts[lane_of_thread()] : 0;
  const int before_warp = __reduce_add_sync(kFullWarp, lane_of_thread() < warp_of_thread() ? count : 0);
  return {before_warp + inclusive - value, __reduce_add_sync(kFullWarp, count)};
}

__device__ inline int block_min(int value, RankExchange& exchange) {
  const int least = __reduce_min_sync(kFullWarp, value);
  __syncthreads();
  if (lane_of_thread() == 0) exchange.counts[warp_of_thread()] = least;
  __syncthreads();
  return __reduce_min_sync(kFullWarp, exchange.counts[lane_of_thread() % kRankWarps]);
}

// The position of the n-th (from 1) of the keys [length] equal to `key`; there are that many. Each warp looks at a
// range of positions.
__device__ inline int nth_equal(const std::uint32_t* keys, int length, std::uint32_t key, int n,
                                RankExchange& exchange) {
  const int rounds = (length + kRankThreads - 1) / kRankThreads;
  const int first = warp_of_thread() * rounds * kWarpSize + lane_of_thread();
  const auto equal = [&](int round) {
    const int position = first + round * kWarpSize;
    return __ballot_sync(kFullWarp, position < length && keys[position] == key);
  };
  int count = 0;
  for (int round = 0; round < rounds; ++round) count += __popc(equal(round));
  int before = block_sum(lane_of_thread() == 0 ? count : 0, exchange).before;
  before = __shfl_sync(kFullWarp, before, 0);
  if (before < n && n <= before + count) {
    for (int round = 0; round < rounds; ++round) {
      const unsigned found = equal(round);
      const bool mine = found >> lane_of_thread() & 1u;
      if (mine && before + __popc(found & ((1u << lane_of_thread()) - 1u)) == n - 1)
        exchange.answer = first + round * kWarpSize;
      before += __popc(found);
    }
  }
  __syncthreads();
  return exchange.answer;
}

// The k best of keys [length], `candidates` of which are not 0; among equals the earlier position. A radix search: each
// pass counts the next eight bits of the keys that agree with the k-th in the bits before.
__device__ inline Selection select_best(const std::uint32_t* keys, int length, int candidates, int k,
                                        RankExchange& exchange) {
  if (k <= 0) return kTakeNone;
  if (k >= candidates) return kTakeAll;
  std::uint32_t prefix = 0, prefix_mask = 0;
  int remaining = k;
  for (int shift = 32 - kRadixBits; shift >= 0; shift -= kRadixBits) {
    for (int i = static_cast<int>(threadIdx.x); i < kRadixBins; i += kRankThreads) exchange.histogram[i] = 0;
    __syncthreads();
    for (int position = static_cast<int>(threadIdx.x); position < length; position += kRankThreads) {
      const std::uint32_t key = keys[position];
      if (key != 0 && (key & prefix_mask) == prefix)
        atomicAdd(&exchange.histogram[key >> shift & (kRadixBins - 1)], 1u);
    }
    __syncthreads();
    if (warp_of_thread() == 0) {  // the bin of the remaining-th key from above: each lane adds up eight bins
      constexpr int kBins = kRadixBins / kWarpSize;
      const int top = kRadixBins - 1 - kBins * lane_of_thread();
      int sum = 0;
      for (int i = 0; i < kBins; ++i) sum += static_cast<int>(exchange.histogram[top - i]);
      int inclusive = sum;
      for (int distance = 1; distance < kWarpSize; distance *= 2) {
        const int other = __shfl_up_sync(kFullWarp, inclusive, distance);
        inclusive += lane_of_thread() >= distance ? other : 0;
      }
      int above = inclusive - sum;
      if (above < remaining && remaining <= inclusive) {
        int bin = top;
        int count = static_cast<int>(exchange.histogram[bin]);
        while (above + count < remaining) {
          above += count;
          count = static_cast<int>(exchange.histogram[--bin]);
        }
        exchange.bin = bin;
        exchange.in_bin = count;
        exchange.remaining = remaining - above;
      }
    }
    __syncthreads();
    prefix |= static_cast<std::uint32_t>(exchange.bin) << shift;
    prefix_mask |= static_cast<std::uint32_t>(kRadixBins - 1) << shift;
    remaining = exchange.remaining;
    if (remaining == exchange.in_bin) return {prefix == 0 ? 0 : prefix - 1, -1};  // all of the bin: no tie to break
  }
  return {prefix, nth_equal(keys, length, prefix, remaining, exchange)};
}

// A candidate as one number: larger = ranks higher, by key, then by position.
__device__ __forceinline__ std::uint64_t ranked(std::uint32_t key, int position) {
  return static_cast<std::uint64_t>(key) << 32 | ~static_cast<std::uint32_t>(position);
}
__device__ __forceinline__ std::uint32_t ranked_key(std::uint64_t candidate) {
  return static_cast<std::uint32_t>(candidate >> 32);
}
__device__ __forceinline__ int ranked_position(std::uint64_t candidate) {
  return static_cast<int>(~static_cast<std::uint32_t>(candidate));
}

__host__ __device__ inline std::int64_t power_of_two_above(std::int64_t n) {
  std::int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

// Sorts order [power_of_two_above(count)] descending; what lies behind `count` is overwritten with 0. A bitonic
// network: a stage orders the pairs that lie `stride` apart, up or down by the bit `sorted` of their place.
__device__ inline void sort_descending(std::uint64_t* order, int count) {
  const int size = static_cast<int>(power_of_two_above(count));
  for (int i = count + static_cast<int>(threadIdx.x); i < size; i += kRankThreads) order[i] = 0;
  for (int sorted = 2; sorted <= size; sorted *= 2) {
    for (int stride = sorted / 2; stride > 0; stride /= 2) {
      __syncthreads();
      for (int pair = static_cast<int>(threadIdx.x); pair < size / 2; pair += kRankThreads) {
        const int low = 2 * pair - (pair & (stride - 1)), high = low + stride;
        const std::uint64_t a = order[low], b = order[high];
        if ((a < b) == ((low & sorted) == 0)) {
          order[low] = b;
          order[high] = a;
        }
      }
    }
  }
  __syncthreads();
}

}  // namespace mdlm_fast::cuda
