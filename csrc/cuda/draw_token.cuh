// Drawing a token by inverse CDF (mdlm_fast/ops/reference/_sampling.py), by one warp: a tile by the tiles' masses, then
// a column of that tile, which is read again. Prefix sums are in double precision and in order of ids.
#pragma once

#include "finish_row.cuh"
#include "score_source.cuh"
#include "tile_statistics.cuh"

namespace mdlm_fast::cuda {

// A lane's part of an ordered sum: what the lanes before it hold, and the same with its own.
struct Prefix {
  double before, with;
};

// `start` is the sum before lane 0.
__device__ __forceinline__ Prefix warp_prefix(double own, double start, int lane) {
  double inclusive = own;
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const double lower = __shfl_up_sync(kFullWarp, inclusive, distance);
    if (lane >= distance) inclusive += lower;
  }
  const double exclusive = __shfl_up_sync(kFullWarp, inclusive, 1);
  const double before = start + (lane == 0 ? 0.0 : exclusive);
  return {before, before + own};
}

struct TileDraw {
  int tile;
  double residual;  // what is left of the target within the tile, relative to the tile's best
};

// The first tile whose cumulative mass exceeds u times the whole, else the last with mass. There is a candidate.
__device__ __forceinline__ TileDraw draw_tile(const float* records, int tiles, float best, double temperature, double u,
                                              int lane) {
  const TileRun run(tiles, lane);
  const auto scale_of = [&](const Partial& p) { return exp((static_cast<double>(p.best) - best) / temperature); };
  const auto mass_of = [&](const Partial& p) { return p.best_id < 0 ? 0.0 : (1.0 + p.mass_rest) * scale_of(p); };
  double own = 0.0;
  for (int j = run.begin; j < run.end; ++j) own += mass_of(load_partial(records + std::int64_t{j} * kPartialFields));
  const Prefix prefix = warp_prefix(own, 0.0, lane);
  const double target = u * __shfl_sync(kFullWarp, prefix.with, kWarpSize - 1);
  const unsigned above = __ballot_sync(kFullWarp, own > 0.0 && prefix.with > target);
  const unsigned some = __ballot_sync(kFullWarp, own > 0.0);
  const int owner = above != 0 ? __ffs(static_cast<int>(above)) - 1 : kWarpSize - 1 - __clz(static_cast<int>(some));
  TileDraw draw{0, 0.0};
  if (lane == owner) {
    double sum = 0.0;
    for (int j = run.begin; j < run.end; ++j) {
      const Partial p = load_partial(records + std::int64_t{j} * kPartialFields);
      const double mass = mass_of(p);
      if (!(mass > 0.0)) continue;
      draw = {j, (target - (prefix.before + sum)) / scale_of(p)};
      sum += mass;
      if (prefix.before + sum > target) break;
    }
  }
  return {__shfl_sync(kFullWarp, draw.tile, owner), __shfl_sync(kFullWarp, draw.residual, owner)};
}

// The first column of a tile whose cumulative mass exceeds `residual`, else the last with mass; -1 if none has any.
// Masses are relative to `best`, formed as the tile's mass was.
template <class Element>
__device__ __forceinline__ int draw_column(const Tile<Element>& tile, float best, float scale, double residual,
                                           int lane) {
  using Registers = Tile<Element>;
  double start = 0.0;
  int last = -1;
#pragma unroll 1
  for (int v = 0; v < Registers::kVectors; ++v) {
    Vector vector{};
    at_vector<0, Registers::kVectors>(v, [&](auto at) { vector = tile.vectors[decltype(at)::value]; });
    double own = 0.0;
#pragma unroll
    for (int i = 0; i < Registers::kPerVector; ++i) own += exp2_approx((number<Element>(vector, i) - best) * scale);
    const Prefix prefix = warp_prefix(own, start, lane);
    const unsigned above = __ballot_sync(kFullWarp, own > 0.0 && prefix.with > residual);
    int column = -1;  // the lane's first above the residual, else its last with mass
    double sum = 0.0;
    bool found = false;
#pragma unroll
    for (int i = 0; i < Registers::kPerVector; ++i) {
      const float mass = exp2_approx((number<Element>(vector, i) - best) * scale);
      sum += mass;
      if (mass > 0.0f && !found) {
        column = Registers::column(v, lane) + i;
        found = prefix.before + sum > residual;
      }
    }
    if (above != 0) return __shfl_sync(kFullWarp, column, __ffs(static_cast<int>(above)) - 1);
    last = max(last, __reduce_max_sync(kFullWarp, column));
    start = __shfl_sync(kFullWarp, prefix.with, kWarpSize - 1);
  }
  return last;
}

struct Draw {
  std::int32_t token;
  float logit;
};

// Draws from the candidates at or above `pivot`, of which `records` are the statistics. There is at least one.
template <class Reader>
__device__ __forceinline__ Draw draw_token(const Reader& reader, const ScoreSource& source, const TemperedRow& row,
                                           float pivot, double u, int lane) {
  const TileDraw draw = draw_tile(row.records, source.tiles, row.maxima.best, row.temperature, u, lane);
  const Partial p = load_partial(row.records + std::int64_t{draw.tile} * kPartialFields);
  const int first = draw.tile * kTileColumns;
  typename Reader::Registers tile;
  reader.load(tile, draw.tile, lane);
  const ExcludedNumbers excluded = excluded_numbers<typename Reader::Registers>(
      exclusion_of(source), source.vocab_start + first, reader.count(draw.tile), lane);
  remove_numbers(tile, excluded.mask, [&](float z, bool out) { return out || z < pivot; });
  const float scale = exponent_scale(static_cast<float>(row.temperature));
  const int column = first + draw_column(tile, p.best, scale, draw.residual, lane);
  return {source.vocab_start + column, reader.value(column)};
}

}  // namespace mdlm_fast::cuda
