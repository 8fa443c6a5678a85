// What select_commit_ ranks candidates by, and how many of them each rule takes; the meaning is written in
// mdlm_fast/ops/reference/select_commit_.py.
#pragma once

#include "../common/philox.h"
#include "../common/select_commit_arguments.h"
#include "memory.cuh"
#include "rank.cuh"

namespace mdlm_fast::cuda {

// What a block keeps of one sequence, in shared memory or, where that is too small, in its part of the scratch memory.
struct SequenceStorage {
  std::uint64_t* order;  // [power_of_two_above(L)], candidates as ranked(); only for the rules that walk down the ranks
  std::int32_t* slots;   // [L], the slot that stands for each position, or -1
  std::uint32_t* keys;   // [L], 0 where there is no candidate
};

__host__ __device__ inline bool walks_down_the_ranks(Rule rule) {
  return rule == Rule::kFactor || rule == Rule::kEntropyBound;
}

__host__ __device__ inline std::int64_t sequence_storage_bytes(std::int64_t length, Rule rule) {
  return 8 * length + (walks_down_the_ranks(rule) ? 8 * power_of_two_above(length) : 0);
}

__device__ __forceinline__ SequenceStorage sequence_storage(unsigned char* memory, std::int64_t length, Rule rule) {
  std::uint64_t* order = reinterpret_cast<std::uint64_t*>(memory);
  const std::int64_t ordered = walks_down_the_ranks(rule) ? power_of_two_above(length) : 0;
  std::int32_t* slots = reinterpret_cast<std::int32_t*>(order + ordered);
  return {order, slots, reinterpret_cast<std::uint32_t*>(slots + length)};
}

// Ranks the candidates of one sequence; the parameters that are the same for all of them are read once.
class Ranking {
 public:
  __device__ __forceinline__ Ranking(const SelectCommit& args, std::int64_t sequence) : args_(args) {
    const bool random = args.rule == Rule::kOrigin || args.position_temperature > 0.0;
    seed_ = random ? static_cast<std::uint64_t>(load_constant(args.seeds + sequence)) : 0;
    step_ = static_cast<std::uint32_t>(load_constant(args.step + sequence * args.step_stride));
    probability_ = args.rule == Rule::kOrigin ? load_constant(args.threshold + sequence) : 0.0f;
    discount_ = args.discount == Discount::kNone ? 1.0f : load_constant(args.gamma + sequence);
    if (args.discount == Discount::kLog) discount_ = static_cast<float>(log(static_cast<double>(discount_)));
  }

  // What the rule ranks on, as a key. "origin" does not rank: each position is taken or not.
  __device__ __forceinline__ std::uint32_t key(std::int32_t slot, std::int64_t token) const {
    if (args_.rule == Rule::kOrigin) return uniform(slot) < static_cast<double>(probability_) ? 1u : 0u;
    if (args_.rule == Rule::kEntropyBound) return ascending_key(load(args_.entropy + slot));
    float value = load(args_.confidence + slot);
    if (args_.discount != Discount::kNone && is_eos(token))
      value = args_.discount == Discount::kLog ? value + discount_ : value * discount_;
    if (args_.position_temperature > 0.0) {
      const double gumbel = -log(-log(uniform(slot)));
      value = static_cast<float>(static_cast<double>(value) / args_.position_temperature + gumbel);
    }
    return descending_key(value);
  }

 private:
  __device__ __forceinline__ double uniform(std::int32_t slot) const {
    const std::uint32_t position = static_cast<std::uint32_t>(load_constant(args_.row_position + slot));
    return philox_uniform(seed_, position, step_, kPositionChoiceStream);
  }

  __device__ __forceinline__ bool is_eos(std::int64_t token) const {
    bool found = false;
    for (std::int64_t i = 0; i < args_.num_eos_ids; ++i) found |= load_constant(args_.eos_ids + i) == token;
    return found;
  }

  const SelectCommit& args_;
  std::uint64_t seed_;
  std::uint32_t step_;
  float probability_, discount_;
};

// threshold, quota_threshold: all that pass, if they are as many as must be taken; else the best. A threshold that is
// not a number lets nothing pass.
__device__ inline Selection select_above(const SelectCommit& args, std::int64_t sequence,
                                         const SequenceStorage& storage, int candidates, RankExchange& exchange) {
  const float threshold = load_constant(args.threshold + sequence);
  const bool strictly = args.rule == Rule::kQuotaThreshold;
  // All keys above `bound` pass. No number has the key 0, so the key before that of a number is one that can be named.
  const std::uint32_t bound =
      threshold != threshold ? kTakeNone.bound : descending_key(threshold) - (strictly ? 0u : 1u);
  const int length = static_cast<int>(args.length);
  int above = 0;
  for (int l = static_cast<int>(threadIdx.x); l < length; l += kRankThreads) above += storage.keys[l] > bound;
  above = block_sum(above, exchange).total;
  const int least = strictly ? load_constant(args.quota + sequence) : 1;
  return above >= least ? Selection{bound, -1} : select_best(storage.keys, length, candidates, least, exchange);
}

// factor: how many of the best candidates are taken before the first whose probability is too small for its rank.
__device__ inline int count_by_factor(const std::uint64_t* order, int candidates, double factor,
                                      RankExchange& exchange) {
  int rejected = candidates + 1;
  for (int rank = 2 + static_cast<int>(threadIdx.x); rank <= candidates; rank += kRankThreads) {
    const double probability = exp(static_cast<double>(descending_value(ranked_key(order[rank - 1]))));
    if (probability < 1.0 - factor / (static_cast<double>(rank) + 1.0) && rank < rejected) rejected = rank;
  }
  return block_min(rejected, exchange) - 1;
}

// entropy_bound: how many are taken while the sum of the entropies before stays within the bound. The sum runs from
// left to right in fp64, by one warp, which fetches 32 terms at a time.
__device__ inline int count_by_entropy(const std::uint64_t* order, int candidates, double bound,
                                       RankExchange& exchange) {
  if (warp_of_thread() == 0) {
    double before = 0.0;
    int taken = candidates > 0 ? 1 : 0;
    bool within = true;
    for (int first = 0; within && first < candidates; first += kWarpSize) {
      const int place = first + lane_of_thread();
      const float entropy = place < candidates ? ascending_value(ranked_key(order[place])) : 0.0f;
      for (int i = 0; within && i < kWarpSize && first + i + 1 < candidates; ++i) {
        before += static_cast<double>(__shfl_sync(kFullWarp, entropy, i));
        within = before <= bound;
        taken += within;
      }
    }
    if (lane_of_thread() == 0) exchange.answer = taken;
  }
  __syncthreads();
  return exchange.answer;
}

// The rules whose decision on a rank depends on the ranks before it.
__device__ inline Selection select_by_walking(const SelectCommit& args, std::int64_t sequence,
                                              const SequenceStorage& storage, int candidates, RankExchange& exchange) {
  if (threadIdx.x == 0) exchange.answer = 0;
  __syncthreads();
  for (int l = static_cast<int>(threadIdx.x); l < static_cast<int>(args.length); l += kRankThreads)
    if (storage.keys[l] != 0) storage.order[atomicAdd(&exchange.answer, 1)] = ranked(storage.keys[l], l);
  __syncthreads();
  sort_descending(storage.order, candidates);
  const double threshold = static_cast<double>(load_constant(args.threshold + sequence));
  const int taken = args.rule == Rule::kFactor ? count_by_factor(storage.order, candidates, threshold, exchange)
                                               : count_by_entropy(storage.order, candidates, threshold, exchange);
  if (candidates == 0) return kTakeNone;
  const std::uint64_t last = storage.order[taken - 1];
  return {ranked_key(last), ranked_position(last)};
}

__device__ inline Selection select(const SelectCommit& args, std::int64_t sequence, const SequenceStorage& storage,
                                   int candidates, RankExchange& exchange) {
  switch (args.rule) {
    case Rule::kQuota:
      return select_best(storage.keys, static_cast<int>(args.length), candidates,
                         load_constant(args.quota + sequence), exchange);
    case Rule::kThreshold:
    case Rule::kQuotaThreshold:
      return select_above(args, sequence, storage, candidates, exchange);
    case Rule::kFactor:
    case Rule::kEntropyBound:
      return select_by_walking(args, sequence, storage, candidates, exchange);
    case Rule::kOrigin:
      break;
  }
  return kTakeAll;
}

}  // namespace mdlm_fast::cuda
