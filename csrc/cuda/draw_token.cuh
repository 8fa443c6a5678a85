// Drawing a token by inverse CDF (mdlm_fast/ops/reference/_sampling.py), by one warp: a tile by the tiles' masses, then
// a column of that tile, which is read again. Prefix sums are in double precision and in order of ids.
//
// With one warp to a row a draw is a chain of latencies. So a tile's scale is formed once, all of a tile's masses are
// added up before the first decision, and what else the row needs is done while the tile is on its way.
#pragma once

#include "finish_row.cuh"
#include "score_source.cuh"
#include "tile_statistics.cuh"

namespace mdlm_fast::cuda {

// A lane's part of an ordered sum: what the lanes before it hold, and the same with its own.
struct Prefix {
  double before, with;
};

// `start` is the sum before lane 0. Neighbouring lanes hold the same value by groups of `group`, which counts once.
__device__ __forceinline__ Prefix warp_prefix(double own, double start, int lane, int group = 1) {
  double inclusive = own;
#pragma unroll
  for (int distance = group; distance < kWarpSize; distance *= 2) {
    const double lower = __shfl_up_sync(kFullWarp, inclusive, distance);
    if (lane >= distance) inclusive += lower;
  }
  const double exclusive = __shfl_up_sync(kFullWarp, inclusive, group);
  const double before = start + (lane < group ? 0.0 : exclusive);
  return {before, before + own};
}

// The first lane whose sum exceeds `target`, else the last that has anything.
__device__ __forceinline__ int first_above(double own, const Prefix& prefix, double target) {
  const unsigned above = __ballot_sync(kFullWarp, own > 0.0 && prefix.with > target);
  const unsigned some = __ballot_sync(kFullWarp, own > 0.0);
  return above != 0 ? __ffs(static_cast<int>(above)) - 1 : kWarpSize - 1 - __clz(static_cast<int>(some));
}

inline constexpr int kMassesAtOnce = 4;

// Some consecutive tiles' masses, and what a mass relative to the tile's best is multiplied by.
struct TileMasses {
  double mass[kMassesAtOnce], scale[kMassesAtOnce];
};

// Of the tiles [first, end), at most kMassesAtOnce; 0 beyond.
__device__ __forceinline__ TileMasses tile_masses(const TemperedRow& row, int first, int end) {
  const double inverse = 1.0 / row.temperature;
  TileMasses masses;
#pragma unroll
  for (int i = 0; i < kMassesAtOnce; ++i) {
    masses.mass[i] = 0.0;
    masses.scale[i] = 1.0;
    if (first + i >= end) continue;
    const Partial p = load_partial(row.records + std::int64_t{first + i} * kPartialFields);
    if (p.best_id < 0) continue;
    masses.scale[i] = exp((static_cast<double>(p.best) - row.maxima.best) * inverse);
    masses.mass[i] = (1.0 + p.mass_rest) * masses.scale[i];
  }
  return masses;
}

struct TileDraw {
  int tile;
  double residual;  // what is left of the target within the tile, relative to the tile's best
};

// The first tile whose cumulative mass exceeds u times the whole, else the last with mass. There is a candidate.
__device__ __forceinline__ TileDraw draw_tile(const TemperedRow& row, int tiles, double u, int lane) {
  const TileRun run(tiles, lane);
  TileMasses masses = tile_masses(row, run.begin, run.end);
  double own = 0.0;
#pragma unroll
  for (int i = 0; i < kMassesAtOnce; ++i) own += masses.mass[i];
#pragma unroll 1
  for (int first = run.begin + kMassesAtOnce; first < run.end; first += kMassesAtOnce) {
    masses = tile_masses(row, first, run.end);
#pragma unroll
    for (int i = 0; i < kMassesAtOnce; ++i) own += masses.mass[i];
  }
  const Prefix prefix = warp_prefix(own, 0.0, lane);
  const double target = u * __shfl_sync(kFullWarp, prefix.with, kWarpSize - 1);
  const int owner = first_above(own, prefix, target);
  TileDraw draw{0, 0.0};
  double sum = prefix.before, scale = 1.0;
  bool found = false;
  const auto search = [&](int first) {  // among `masses`, the first of which is tile `first`
#pragma unroll
    for (int i = 0; i < kMassesAtOnce; ++i) {
      if (found || !(masses.mass[i] > 0.0)) continue;
      draw = {first + i, target - sum};
      scale = masses.scale[i];
      sum += masses.mass[i];
      found = sum > target;
    }
  };
  if (run.end - run.begin <= kMassesAtOnce) {
    search(run.begin);
  } else if (lane == owner) {
#pragma unroll 1
    for (int first = run.begin; first < run.end && !found; first += kMassesAtOnce) {
      masses = tile_masses(row, first, run.end);
      search(first);
    }
  }
  return {__shfl_sync(kFullWarp, draw.tile, owner), __shfl_sync(kFullWarp, draw.residual / scale, owner)};
}

// Sums over the lanes of kCount numbers each, of which lane l gets number l kCount / 32: a lane hands over one half of
// its numbers and adds what it gets to the other, again with half of them and half the distance, then adds up by pairs.
template <int kCount, int kDistance = kWarpSize / 2>
__device__ __forceinline__ double spread_sums(const double (&own)[kCount], int lane) {
  if constexpr (kDistance == 0) {
    return own[0];
  } else if constexpr (kCount == 1) {
    const double both[1] = {own[0] + __shfl_xor_sync(kFullWarp, own[0], kDistance)};
    return spread_sums<1, kDistance / 2>(both, lane);
  } else {
    const bool upper = (lane & kDistance) != 0;
    double kept[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const double low = own[i], high = own[kCount / 2 + i];
      kept[i] = (upper ? high : low) + __shfl_xor_sync(kFullWarp, upper ? low : high, kDistance);
    }
    return spread_sums<kCount / 2, kDistance / 2>(kept, lane);
  }
}

struct ColumnDraw {
  int column;
  float logit;
};

// The first column of a tile whose cumulative mass exceeds `residual`, else the last with mass; there is one. Masses
// are relative to `best`, formed as the tile's mass was.
template <class Element>
__device__ __forceinline__ ColumnDraw draw_column(const Tile<Element>& tile, float best, float scale, double residual,
                                                  int lane) {
  using Registers = Tile<Element>;
  constexpr int kGroup = kWarpSize / Registers::kVectors;
  const auto mass_of = [&](float z) { return exp2_approx((z - best) * scale); };
  double sums[Registers::kVectors];
#pragma unroll
  for (int v = 0; v < Registers::kVectors; ++v) {
    sums[v] = 0.0;
#pragma unroll
    for (int i = 0; i < Registers::kPerVector; ++i) sums[v] += mass_of(number<Element>(tile.vectors[v], i));
  }
  const double whole = spread_sums(sums, lane);
  const Prefix vectors = warp_prefix(whole, 0.0, lane, kGroup);
  const int first = first_above(whole, vectors, residual), v = first / kGroup;
  Vector vector{};
  at_vector<0, Registers::kVectors>(v, [&](auto at) { vector = tile.vectors[decltype(at)::value]; });

  double own = 0.0;
#pragma unroll
  for (int i = 0; i < Registers::kPerVector; ++i) own += mass_of(number<Element>(vector, i));
  const Prefix lanes = warp_prefix(own, __shfl_sync(kFullWarp, vectors.before, first), lane);
  const int owner = first_above(own, lanes, residual);
  ColumnDraw draw{0, 0.0f};  // the lane's first above the residual, else its last with mass
  double sum = lanes.before;
  bool found = false;
#pragma unroll
  for (int i = 0; i < Registers::kPerVector; ++i) {
    const float z = number<Element>(vector, i), mass = mass_of(z);
    if (found || !(mass > 0.0f)) continue;
    draw = {Registers::column(v, lane) + i, z};
    sum += mass;
    found = sum > residual;
  }
  return {__shfl_sync(kFullWarp, draw.column, owner), __shfl_sync(kFullWarp, draw.logit, owner)};
}

struct Draw {
  std::int32_t token;
  float logit;
};

// A draw from the candidates of a row at or above `pivot`, of which there is one. In two steps, as the tile takes its
// time to arrive.
template <class Reader>
struct TokenDraw {
  using Registers = typename Reader::Registers;

  Registers tile;
  ExcludedNumbers excluded;
  TileDraw chosen;
  float best;  // of the tile

  // Chooses the tile and asks for it. `row` has the statistics of what is drawn from.
  __device__ __forceinline__ void choose_tile(const Reader& reader, const ScoreSource& source, const TemperedRow& row,
                                              double u, int lane) {
    chosen = draw_tile(row, source.tiles, u, lane);
    reader.load(tile, chosen.tile, lane);
    best = load_uniform(row.records + std::int64_t{chosen.tile} * kPartialFields + kBestField);
    excluded = excluded_numbers<Registers>(exclusion_of(source), source.vocab_start + chosen.tile * kTileColumns,
                                           reader.count(chosen.tile), lane);
  }

  __device__ __forceinline__ Draw choose_column(const ScoreSource& source, float temperature, float pivot, int lane) {
    remove_numbers(tile, excluded.mask, [&](float z, bool out) { return out || z < pivot; });
    const ColumnDraw draw = draw_column(tile, best, exponent_scale(temperature), chosen.residual, lane);
    return {source.vocab_start + chosen.tile * kTileColumns + draw.column, draw.logit};
  }
};

}  // namespace mdlm_fast::cuda
