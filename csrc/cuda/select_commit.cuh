// One denoising step's choice of positions: a block ranks the candidates of a sequence, takes some and writes them
// down; then, once all sequences are written, the blocks list the rows that are still masked.
//
// Nothing is kept between calls and no order of threads shows in the result, so a launch can be captured and replayed.
#pragma once

#include "select_commit.h"
#include "select_commit_rules.cuh"
#include "shared.cuh"

namespace mdlm_fast::cuda {

// Calls f(slot, row) for every slot, in any order: rows [C] in vectors of four, whatever their alignment.
template <class F>
__device__ __forceinline__ void for_each_slot(const std::int32_t* rows, int capacity, F f) {
  const int thread = static_cast<int>(threadIdx.x);
  const int to_vector = static_cast<int>(-(reinterpret_cast<std::uintptr_t>(rows) / 4) & 3u);
  const int head = to_vector < capacity ? to_vector : capacity;
  const int vectors = (capacity - head) / 4, tail = head + 4 * vectors;
  if (thread < head) f(thread, load_constant(rows + thread));
#pragma unroll 4
  for (int i = thread; i < vectors; i += kRankThreads) {
    const Vector four = load_vector(rows + head + 4 * i);
    for (int j = 0; j < 4; ++j) f(head + 4 * i + j, static_cast<std::int32_t>(four.words[j]));
  }
  if (thread < capacity - tail) f(tail + thread, load_constant(rows + tail + thread));
}

__device__ inline void find_slots(const SelectCommit& args, std::int64_t sequence, std::int32_t* slots) {
  const int length = static_cast<int>(args.length);
  for (int l = static_cast<int>(threadIdx.x); l < length; l += kRankThreads) slots[l] = -1;
  __syncthreads();
  const std::int32_t first = static_cast<std::int32_t>(sequence * args.length);
  for_each_slot(args.rows, static_cast<int>(args.capacity), [&](int slot, std::int32_t row) {
    if (row >= first && row - first < length) slots[row - first] = slot;
  });
  __syncthreads();
}

// Writes the key of every position of the sequence.
struct Counts {
  int masked, candidates;
};
__device__ inline Counts write_keys(const SelectCommit& args, std::int64_t sequence, const SequenceStorage& storage,
                                    RankExchange& exchange) {
  const Ranking ranking(args, sequence);
  const int length = static_cast<int>(args.length);
  const std::uint8_t* const masked_row = args.masked + sequence * args.length;
  Counts mine{0, 0};
  for (int l = static_cast<int>(threadIdx.x); l < length; l += kRankThreads) {
    const std::int32_t slot = storage.slots[l];
    const bool masked = load(masked_row + l) != 0;
    std::uint32_t key = 0;
    if (masked && slot >= 0) {
      const std::int64_t token = load(args.token + slot);
      if (token >= 0) key = ranking.key(slot, token);
    }
    storage.keys[l] = key;
    mine.masked += masked;
    mine.candidates += key != 0;
  }
  return {block_sum(mine.masked, exchange).total, block_sum(mine.candidates, exchange).total};
}

// Writes what is taken; returns how many tokens that were.
__device__ inline int commit(const SelectCommit& args, std::int64_t sequence, const SequenceStorage& storage,
                             const Selection& selection, RankExchange& exchange) {
  const auto step = static_cast<std::int16_t>(load_constant(args.step + sequence * args.step_stride));
  int taken = 0;
  const int length = static_cast<int>(args.length);
  for (int l = static_cast<int>(threadIdx.x); l < length; l += kRankThreads) {
    if (!selection.takes(storage.keys[l], l)) continue;
    const std::int32_t slot = storage.slots[l];
    const std::int64_t cell = sequence * args.length + l;
    store(args.canvas + cell, load(args.token + slot));
    store(args.masked + cell, std::uint8_t{0});
    if (args.commit_step) store(args.commit_step + cell, step);
    if (args.commit_logp) store(args.commit_logp + cell, load(args.logp + slot));
    if (args.commit_logp_tempered) store(args.commit_logp_tempered + cell, load(args.logp_tempered + slot));
    if (args.commit_confidence) store(args.commit_confidence + cell, load(args.confidence + slot));
    ++taken;
  }
  return block_sum(taken, exchange).total;
}

// One sequence, by one block. Token, confidence, log-probabilities and entropy [C] are read with plain loads: the same
// launch may have written them.
__device__ inline void commit_sequence(const SelectCommit& args, std::int64_t sequence, const SequenceStorage& storage,
                                       RankExchange& exchange) {
  find_slots(args, sequence, storage.slots);
  const Counts counts = write_keys(args, sequence, storage, exchange);
  const Selection selection = select(args, sequence, storage, counts.candidates, exchange);
  const int left = counts.masked - commit(args, sequence, storage, selection, exchange);
  if (threadIdx.x == 0) {
    if (args.masks_left) store(args.masks_left + sequence, left);
    if (args.done) store(args.done + sequence, static_cast<std::uint8_t>(left == 0));
  }
}

// next_rows [C]: the rows still masked, in the order of their slots, -1 behind. Each block writes a range of slots; it
// counts for itself how many rows the others keep, which is cheaper than a second barrier of the grid.
__device__ inline void write_next_rows(const SelectCommit& args, RankExchange& exchange) {
  constexpr int kSlots = 4;  // of a thread at a time
  constexpr int kBlockSlots = kSlots * kRankThreads;
  const int capacity = static_cast<int>(args.capacity), blocks = static_cast<int>(gridDim.x);
  const int cells = static_cast<int>(args.num_sequences * args.length);
  const int pieces = (capacity + kBlockSlots - 1) / kBlockSlots, each = (pieces + blocks - 1) / blocks;
  const int first_piece = static_cast<int>(blockIdx.x) * each;
  const int end_piece = first_piece + each < pieces ? first_piece + each : pieces;
  if (first_piece >= end_piece && blockIdx.x != 0) return;
  const auto still_masked = [&](std::int32_t row) { return row >= 0 && row < cells && load(args.masked + row) != 0; };
  int before = 0, total = 0;
  for_each_slot(args.rows, capacity, [&](int slot, std::int32_t row) {
    const int kept = still_masked(row);
    total += kept;
    before += slot < first_piece * kBlockSlots ? kept : 0;
  });
  total = block_sum(total, exchange).total;
  before = block_sum(before, exchange).total;
  if (args.num_next_rows && blockIdx.x == 0 && threadIdx.x == 0) store(args.num_next_rows, total);
  if (!args.next_rows) return;
  for (int piece = first_piece; piece < end_piece; ++piece) {
    const int first = piece * kBlockSlots + kSlots * static_cast<int>(threadIdx.x);
    std::int32_t rows[kSlots];
    int kept = 0;
    for (int j = 0; j < kSlots; ++j) {
      rows[j] = first + j < capacity ? load_constant(args.rows + first + j) : -1;
      if (!still_masked(rows[j])) rows[j] = -1;
      kept += rows[j] >= 0;
    }
    const BlockSum sum = block_sum(kept, exchange);
    std::int32_t* to = args.next_rows + before + sum.before;
    for (int j = 0; j < kSlots; ++j) {
      if (rows[j] >= 0) store(to++, rows[j]);
      if (first + j < capacity && first + j >= total) store(args.next_rows + first + j, -1);
    }
    before += sum.total;
  }
}

// Grid: a block per sequence, or as many as run at once. Cooperative if there are several and rows are listed.
__global__ void __launch_bounds__(kRankThreads, 1)
    select_commit_kernel(const __grid_constant__ SelectCommit args, unsigned char* scratch) {
  __shared__ RankExchange exchange;
  for (std::int64_t sequence = blockIdx.x; sequence < args.num_sequences; sequence += gridDim.x) {
    unsigned char* memory = scratch ? scratch + sequence * sequence_storage_bytes(args.length, args.rule)
                                    : shared_memory<unsigned char>();
    commit_sequence(args, sequence, sequence_storage(memory, args.length, args.rule), exchange);
  }
  if (!args.next_rows && !args.num_next_rows) return;
  if (gridDim.x > 1)
    grid_barrier();
  else
    __syncthreads();
  write_next_rows(args, exchange);
}

}  // namespace mdlm_fast::cuda
