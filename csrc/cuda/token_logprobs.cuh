// Log-probabilities of given tokens (mdlm_fast/ops/reference/token_logprobs.py): one warp reads a tile of a row and
// leaves a record of 16 bytes; then one warp merges the records of a row in fp64.
#pragma once

#include "../common/ordered_key.h"
#include "partial.cuh"
#include "score_source.cuh"
#include "tile_statistics.cuh"
#include "token_logprobs.h"

namespace mdlm_fast::cuda {

inline constexpr int kRecordFields = 4;
inline constexpr int kMergeWarps = 4;  // of a block

// Sums over a tile relative to `reference` (d = z - reference), the same in all lanes and in the order of
// tile_statistics.cuh: of w = exp(d / T), and of d w / T.
//
// w = 2^x, where x = d log2(e)/T is rounded; at a gap of 24 that alone is a relative error of 1e-6, and the same for
// all columns of one value. To first order 2^(x + l) = w (1 + l ln 2), with l what the rounding lost. So the sum of l w
// is kept too, and puts the sum of w right once for the whole tile, as the moment does for what log2(e)/T lost.
struct TemperedSums {
  float rest, moment;
};
template <class Element>
__device__ __forceinline__ TemperedSums tempered_sums(const Tile<Element>& tile, float reference, float temperature) {
  constexpr int kPerWord = 4 / static_cast<int>(sizeof(Element));
  const float scale = kLog2E / temperature;
  const float scale_lost = (fmaf(-scale, temperature, kLog2E) + kLog2ELost) / temperature;
  const float least = kLeastExponent / scale;  // w is 0 from here on, and 0 times d is too
  float sum[4] = {}, lost[4] = {}, moment[4] = {};
#pragma unroll
  for (int v = 0; v < Tile<Element>::kVectors; ++v)
#pragma unroll
    for (int i = 0; i < Tile<Element>::kPerVector; ++i) {
      const int k = i / kPerWord;
      const float d = fmaxf(number<Element>(tile.vectors[v], i) - reference, least);
      const float x = rounded_product(d, scale), w = exp2_approx(x);
      sum[k] += w;
      lost[k] = fmaf(w, fmaf(d, scale, -x), lost[k]);
      moment[k] = fmaf(d, w, moment[k]);
    }
  const auto total = [](const float* s) { return warp_sum((s[0] + s[2]) + (s[1] + s[3])); };
  const float total_moment = total(moment);
  return {fmaf(kLn2, fmaf(scale_lost, total_moment, total(lost)), total(sum)), total_moment / temperature};
}

// Grid: (N, tiles / warps of a block). Record: top, the sum of exp((z - top) / T) without the top itself, the moment of
// ((z - top) / T) exp((z - top) / T), and the logit of the target if it lies in the tile.
template <class Stored, Reading kReading>
__global__ void __launch_bounds__(128, sizeof(Stored) == 2 ? 7 : 4)
    logprob_records_kernel(const __grid_constant__ TokenLogprobsParams params) {
  using Reader = RowReader<Stored, kReading>;
  using Registers = typename Reader::Registers;
  const ScoreSource& source = params.source;
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  const std::int64_t score = blockIdx.x;
  const int j = static_cast<int>((blockIdx.y * blockDim.x + threadIdx.x) / kWarpSize);
  const std::int32_t row = load_uniform(source.rows + score);
  if (j >= source.tiles || row < 0) return;

  const Reader reader(source, score, row);
  Registers tile;
  reader.load(tile, j, lane);
  const int first = j * kTileColumns, count = reader.count(j);
  const ExcludedNumbers excluded = excluded_numbers<Registers>(exclusion_of(source), first, count, lane);
  if (excluded.any) remove_numbers(tile, excluded.mask, [](float, bool out) { return out; });
  const TileMaximum top = take_maximum(tile, lane, false);
  const float reference = top.value == -kInfinity ? 0.0f : top.value;
  const float temperature = unit_temperature(load_uniform(params.temperature + score * params.temperature_stride));
  const TemperedSums sums = tempered_sums(tile, reference, temperature);
  if (lane != 0) return;
  const std::int64_t column = load_constant(params.targets + score) - first;
  const float target = column >= 0 && column < count ? reader.value(first + static_cast<int>(column)) : -kInfinity;
  store_vector(params.records + (score * source.tiles + j) * kRecordFields,
               {{as_bits(top.value), as_bits(sums.rest), as_bits(sums.moment), as_bits(target)}});
}

// What the merge reads of a tile.
struct LogprobTile {
  float top, rest, moment;
};

struct RecordTiles {
  const float* records;  // [tiles, 4] of the row
  __device__ __forceinline__ float top(int j) const { return load(records + j * kRecordFields); }
  __device__ __forceinline__ LogprobTile tile(int j) const {
    const Vector v = load_vector(records + j * kRecordFields);
    return {as_float(v.words[0]), as_float(v.words[1]), as_float(v.words[2])};
  }
};

struct PartialTiles {
  const float* partials;  // [tiles, 8] of the row
  __device__ __forceinline__ float top(int j) const { return load(partials + j * kPartialFields); }
  __device__ __forceinline__ LogprobTile tile(int j) const {
    const Partial p = load_partial(partials + j * kPartialFields);
    return {p.top, p.mass_rest, p.moment};
  }
};

__device__ __forceinline__ double warp_sum(double x) {
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kFullWarp, x, distance);
  return x;
}

struct RowLogprob {
  double logp, entropy, lse;
};

// Merges the tiles of a row. A row that cannot be used has logp NaN and its fault in lse: NaN for a NaN, +inf for a
// +inf, -inf for no candidate. Lane l adds up tiles l, l + 32, ..., lanes add up by pairs at distances 16, 8, 4, 2, 1.
template <class Tiles>
__device__ inline RowLogprob merge_row(const Tiles& tiles, int num_tiles, float target, double temperature, int lane) {
  constexpr double kNaN = __builtin_nan("");
  std::uint32_t best_key = 0;
  int best = num_tiles;
  bool nan = false;
  for (int j = lane; j < num_tiles; j += kWarpSize) {
    const float top = tiles.top(j);
    nan |= top != top;
    const std::uint32_t key = ordered_key(top);
    if (key > best_key) {
      best_key = key;
      best = j;
    }
  }
  if (__any_sync(kFullWarp, nan)) return {kNaN, kNaN, kNaN};
  const std::uint32_t largest = __reduce_max_sync(kFullWarp, best_key);
  best = __reduce_min_sync(kFullWarp, best_key == largest ? best : num_tiles);
  const float maximum = from_ordered_key(largest);
  if (maximum == kInfinity || maximum == -kInfinity) return {kNaN, kNaN, static_cast<double>(maximum)};

  double others = 0.0, moment = 0.0;
  for (int j = lane; j < num_tiles; j += kWarpSize) {
    const LogprobTile tile = tiles.tile(j);
    if (tile.top == -kInfinity) continue;
    const double distance = (static_cast<double>(tile.top) - static_cast<double>(maximum)) / temperature;
    const double scale = exp(distance);
    // Of the best tile's maximum, the whole row's, the own 1 stays outside.
    const double sum = static_cast<double>(tile.rest) + (j == best ? 0.0 : 1.0);
    others += scale * sum;
    if (scale > 0.0) moment += scale * (static_cast<double>(tile.moment) + distance * sum);
  }
  others = warp_sum(others);
  moment = warp_sum(moment);
  const double log_sum = log1p(others), entropy = log_sum - moment / (1.0 + others);
  const double top = static_cast<double>(maximum);
  const double distance = (static_cast<double>(target) - top) / temperature;  // -inf where the target is not allowed
  return {distance - log_sum, entropy > 0.0 ? entropy : 0.0, top / temperature + log_sum};
}

// Writes one score; padding: -inf, 0, 0.
template <class Tiles>
__device__ __forceinline__ void write_score(std::int64_t score, bool padding, const Tiles& tiles, int num_tiles,
                                            float target, float temperature, float* logp, float* entropy, double* lse,
                                            int lane) {
  RowLogprob result{-static_cast<double>(kInfinity), 0.0, 0.0};
  if (!padding) result = merge_row(tiles, num_tiles, target, static_cast<double>(temperature), lane);
  if (lane != 0) return;
  store(logp + score, static_cast<float>(result.logp));
  if (entropy != nullptr) store(entropy + score, static_cast<float>(result.entropy));
  store(lse + score, result.lse);
}

__device__ __forceinline__ std::int64_t score_of_warp() {
  return static_cast<std::int64_t>(blockIdx.x) * kMergeWarps + threadIdx.x / kWarpSize;
}

// Grid: N / 4.
__global__ void __launch_bounds__(kMergeWarps* kWarpSize)
    merge_records_kernel(const __grid_constant__ TokenLogprobsParams params) {
  const ScoreSource& source = params.source;
  const std::int64_t score = score_of_warp();
  if (score >= source.capacity) return;
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  const std::int64_t target = load_uniform(params.targets + score);
  const bool padding = load_uniform(source.rows + score) < 0;
  bool excluded = target < 0 || target >= source.vocab_limit || target >= source.width;
  for (int k = lane; k < source.num_forbidden; k += kWarpSize)
    excluded |= load_constant(source.forbidden + k) == target;
  excluded = __any_sync(kFullWarp, excluded);
  const RecordTiles tiles{params.records + score * source.tiles * kRecordFields};
  float logit = -kInfinity;
  if (!excluded && !padding) logit = load_uniform(tiles.records + target / kTileColumns * kRecordFields + 3);
  const float temperature = load_uniform(params.temperature + score * params.temperature_stride);
  write_score(score, padding, tiles, source.tiles, logit, temperature, params.logp, params.entropy, params.lse, lane);
}

// Grid: N / 4.
__global__ void __launch_bounds__(kMergeWarps* kWarpSize)
    merge_partials_kernel(const __grid_constant__ MergeLogprobsParams params) {
  const std::int64_t score = score_of_warp();
  if (score >= params.count) return;
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  const PartialTiles tiles{params.partials + score * params.tiles * kPartialFields};
  const float temperature = load_uniform(params.temperature + score * params.temperature_stride);
  write_score(score, load_uniform(params.rows + score) < 0, tiles, params.tiles,
              load_uniform(params.target_logits + score), temperature, params.logp, params.entropy, params.lse, lane);
}

}  // namespace mdlm_fast::cuda
