// Top-k and top-p without sorting: the smallest logit they keep, by one block per row.
//
// Both filters keep every id tied with their pivot, and top-k counts among what top-p kept, so together they keep the
// logits from the larger of two pivots up: the k-th largest, and the largest value from which up the mass reaches top_p
// of all. A pivot is found 11 bits of its ordered key at a time: a histogram over the keys that share the bits found so
// far, then the bin in which the sum from the top reaches what is wanted. Masses are whole numbers, so that a histogram
// does not depend on the order of its atomic additions.
//
// Logits that cannot be a pivot are left out by one comparison, usually almost all: with k tiles or more, no pivot of
// top-k is below the k-th largest of the tiles' best candidates; and the logits below best + T log((1 - p) total / V)
// hold less than 1 - p together.
#pragma once

#include "finish_row.cuh"
#include "score_source.cuh"
#include "tile_statistics.cuh"

namespace mdlm_fast::cuda {

inline constexpr int kBins = 2048, kBinBits = 11;

struct PivotSearch {
  bool active;                 // off: the filter keeps everything
  std::uint32_t key;           // the bits found so far, shifted down
  unsigned long long missing;  // what the keys that share them have to reach
};

struct PivotMemory {
  std::uint32_t count[kBins], mass_low[kBins], mass_high[kBins];
  PivotSearch by_count, by_mass;
  float bound;
};

// One warp: the first bin from the top at which the sum of value(bin) reaches what is missing.
template <class Value>
__device__ __forceinline__ void descend(PivotSearch& search, int bits, Value&& value, int lane) {
  const unsigned long long missing = search.missing;
  const std::uint32_t key = search.key;
  unsigned long long above = 0;
  int first = 0;  // of the bins still in question, counted from the top
  bool reached = true;
  // Narrows them down to the `width` bins of one of the first `lanes` lanes.
  const auto narrow_down = [&](int width, int lanes) {
    unsigned long long own = 0;
    for (int i = 0; i < width && lane < lanes; ++i)  // rotated, so that lanes read different banks
      own += value(kBins - 1 - (first + lane * width + (i + lane) % width));
    unsigned long long inclusive = own;
#pragma unroll
    for (int distance = 1; distance < kWarpSize; distance *= 2) {
      const unsigned long long lower = __shfl_up_sync(kFullWarp, inclusive, distance);
      if (lane >= distance) inclusive += lower;
    }
    const unsigned found = __ballot_sync(kFullWarp, lane < lanes && above + inclusive >= missing);
    reached = found != 0;
    const int owner = reached ? __ffs(static_cast<int>(found)) - 1 : 0;
    above += __shfl_sync(kFullWarp, inclusive - own, owner);
    first += owner * width;
  };
  narrow_down(kBins / kWarpSize, kWarpSize);
  const bool exists = reached;
  narrow_down(2, kWarpSize);
  narrow_down(1, 2);
  __syncwarp();  // all lanes have read the search that lane 0 now overwrites
  if (lane == 0) search = {exists, key << bits | static_cast<std::uint32_t>(kBins - 1 - first), missing - above};
}

// Sum over the candidates of exp((z - best) / T), by one warp.
__device__ __forceinline__ double candidate_mass(const float* records, int tiles, float best, double temperature,
                                                 int lane) {
  double sum = 0.0;
  for (int j = lane; j < tiles; j += kWarpSize) {
    const Partial p = load_partial(records + std::int64_t{j} * kPartialFields);
    if (p.best_id >= 0) sum += (1.0 + p.mass_rest) * exp((static_cast<double>(p.best) - best) / temperature);
  }
  return warp_sum(sum);
}

// The k-th largest of the tiles' best candidates, in all threads; -inf where there are fewer or too many to compare.
__device__ __forceinline__ float best_of_rank(PivotMemory& memory, const float* records, int tiles, std::int64_t k) {
  if (k > tiles || tiles > kBins) return -kInfinity;
  const int threads = static_cast<int>(blockDim.x);
  for (int j = static_cast<int>(threadIdx.x); j < tiles; j += threads)
    memory.count[j] = ordered_key(load_partial(records + std::int64_t{j} * kPartialFields).best);
  __syncthreads();
  for (int j = static_cast<int>(threadIdx.x); j < tiles; j += threads) {
    const std::uint32_t mine = memory.count[j];
    int rank = 1;
    for (int other = 0; other < tiles; ++other)
      rank += memory.count[other] > mine || (memory.count[other] == mine && other < j);
    if (rank == k) memory.bound = from_ordered_key(mine);
  }
  __syncthreads();
  const float bound = memory.bound;
  __syncthreads();
  return bound;
}

// The pivot of a row, in all threads of the block. `records` are the plain statistics of its tiles.
template <class Reader>
__device__ __forceinline__ float filter_pivot(const Reader& reader, const ScoreSource& source,
                                              const FinishOptions& options, const float* records, float best,
                                              float temperature, PivotMemory& memory) {
  using Registers = typename Reader::Registers;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int lane = thread % kWarpSize, warp = thread / kWarpSize, warps = threads / kWarpSize;
  const float scale = exponent_scale(temperature);
  // Masses in units of 2^-exponent, so that no sum passes 2^62.
  const float unit = as_float(static_cast<std::uint32_t>(127 + min(44, 30 + __clz(source.width))) << 23);
  const double total = candidate_mass(records, source.tiles, best, temperature, lane);

  float bound = kInfinity;
  if (options.top_k > 0) bound = best_of_rank(memory, records, source.tiles, options.top_k);
  if (options.top_p < 1.0) {
    const double below = 0.5 * (1.0 - options.top_p) * total / source.width;  // half: a share for rounding
    bound = fminf(bound, static_cast<float>(best + temperature * log(below)));
  }
  if (thread == 0) {
    memory.by_count = {options.top_k > 0, 0u, static_cast<unsigned long long>(options.top_k)};
    memory.by_mass = {options.top_p < 1.0, 0u,
                      static_cast<unsigned long long>(ceil(options.top_p * total * static_cast<double>(unit)))};
  }

  // The keys of 16-bit logits are settled by their upper 22 bits.
  constexpr int kPasses = sizeof(typename Reader::Element) == 2 ? 2 : 3;
#pragma unroll 1
  for (int pass = 0; pass < kPasses; ++pass) {
    for (int b = thread; b < kBins; b += threads) memory.count[b] = memory.mass_low[b] = memory.mass_high[b] = 0u;
    __syncthreads();
    const PivotSearch by_count = memory.by_count, by_mass = memory.by_mass;
    const int shift = pass == 2 ? 0 : 21 - kBinBits * pass, bits = pass == 2 ? 10 : kBinBits;
    if (by_count.active || by_mass.active)
      for (int j = warp; j < source.tiles; j += warps) {
        if (load_partial(records + std::int64_t{j} * kPartialFields).best < bound) continue;
        Registers tile;
        reader.load(tile, j, lane);
        const ExcludedNumbers excluded = excluded_numbers<Registers>(
            exclusion_of(source), source.vocab_start + j * kTileColumns, reader.count(j), lane);
        if (excluded.any) remove_numbers(tile, excluded.mask, [](float, bool out) { return out; });
#pragma unroll 1
        for (int v = 0; v < Registers::kVectors; ++v) {
          Vector vector{};
          at_vector<0, Registers::kVectors>(v, [&](auto at) { vector = tile.vectors[decltype(at)::value]; });
#pragma unroll
          for (int i = 0; i < Registers::kPerVector; ++i) {
            const float z = number<typename Reader::Element>(vector, i);
            if (!(z >= bound) || z == -kInfinity) continue;
            const std::uint32_t key = ordered_key(z), upper = pass == 0 ? 0u : key >> shift >> bits;
            const std::uint32_t bin = key >> shift & ((1u << bits) - 1u);
            if (by_count.active && upper == by_count.key) atomicAdd(&memory.count[bin], 1u);
            if (by_mass.active && upper == by_mass.key) {
              const std::uint64_t mass = static_cast<std::uint64_t>(exp2_approx((z - best) * scale) * unit);
              const std::uint32_t low = static_cast<std::uint32_t>(mass);
              const std::uint32_t before = atomicAdd(&memory.mass_low[bin], low);
              const std::uint32_t high = static_cast<std::uint32_t>(mass >> 32) + (before + low < low ? 1u : 0u);
              if (high != 0) atomicAdd(&memory.mass_high[bin], high);
            }
          }
        }
      }
    __syncthreads();
    if (warp == 0 && by_count.active) descend(memory.by_count, bits, [&](int b) { return memory.count[b]; }, lane);
    if (warp == 1 % warps && by_mass.active)
      descend(memory.by_mass, bits,
              [&](int b) { return static_cast<unsigned long long>(memory.mass_high[b]) << 32 | memory.mass_low[b]; },
              lane);
    __syncthreads();
  }
  const auto pivot = [&](const PivotSearch& search) {
    if (!search.active) return -kInfinity;
    if (kPasses == 3) return from_ordered_key(search.key);
    // The last 10 bits of a 16-bit number's key are those of 0, which the key of a negative number holds inverted.
    return from_ordered_key(search.key << 10 | (search.key >> 21 != 0 ? 0u : 0x3ffu));
  };
  return fmaxf(pivot(memory.by_count), pivot(memory.by_mass));
}

}  // namespace mdlm_fast::cuda
