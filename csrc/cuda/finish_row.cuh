// A row from the records of its tiles, by one warp: the merge of mdlm_fast/ops/reference/_tiles.py, in fp64.
//
// Each lane takes a run of consecutive tiles in order of ids; lanes add up by pairs at distances 16, 8, 4, 2, 1. The
// order depends on the number of tiles alone. All lanes hold every result.
#pragma once

#include "../common/ordered_key.h"
#include "finish_scores.h"
#include "partial.cuh"

namespace mdlm_fast::cuda {

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kFullWarp, x, distance);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
  return from_ordered_key(__reduce_max_sync(kFullWarp, ordered_key(x)));
}

// The tiles [begin, end) of a lane.
struct TileRun {
  int begin, end;
  __device__ __forceinline__ TileRun(int tiles, int lane) {
    const int length = (tiles + kWarpSize - 1) / kWarpSize;
    begin = min(lane * length, tiles);
    end = min(begin + length, tiles);
  }
};

struct RowMaxima {
  int code;              // 0, or the RowCode of a row that cannot be scored
  float top;             // maximum over the normaliser
  int top_tile;          // the first that has it
  float best;            // best candidate
  std::int32_t best_id;  // the lowest id that has it
  float second;          // second best candidate
};

// `records` is [tiles, 8].
__device__ __forceinline__ RowMaxima row_maxima(const float* records, int tiles, int lane) {
  const TileRun run(tiles, lane);
  bool nan = false;
  float top = -kInfinity, best = -kInfinity, second = -kInfinity;
  int top_tile = tiles, best_tile = tiles;
  std::int32_t best_id = -1;
  constexpr int kAtOnce = 2;  // records asked for before any is used
#pragma unroll 1
  for (int next = run.begin; next < run.end; next += kAtOnce) {
    Partial partials[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      partials[i] =
          next + i < run.end ? load_partial(records + std::int64_t{next + i} * kPartialFields) : empty_partial();
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const Partial& p = partials[i];
      nan |= p.top != p.top;
      if (p.top > top) {
        top = p.top;
        top_tile = next + i;
      }
      if (p.best > best) {
        second = fmaxf(best, p.second);
        best = p.best;
        best_tile = next + i;
        best_id = p.best_id;
      } else {
        second = fmaxf(second, p.best);
      }
    }
  }
  RowMaxima row;
  row.top = warp_max(top);
  row.top_tile = __reduce_min_sync(kFullWarp, top == row.top ? top_tile : tiles);
  row.best = warp_max(best);
  const int first = __reduce_min_sync(kFullWarp, best == row.best ? best_tile : tiles);
  const unsigned owner = __ballot_sync(kFullWarp, best_tile == first && first < tiles);
  row.best_id = __shfl_sync(kFullWarp, best_id, owner != 0 ? __ffs(static_cast<int>(owner)) - 1 : 0);
  row.second = warp_max(best_tile == first ? second : best);
  const bool any_nan = __any_sync(kFullWarp, nan);
  row.code = any_nan ? kNanRow : row.top == kInfinity ? kInfRow : row.best == -kInfinity ? kEmptyRow : 0;
  return row;
}

// Sums relative to the row's maximum: `rest` without the maximum's own 1.
struct Normaliser {
  double rest, moment;
  __device__ __forceinline__ double log_sum() const { return log1p(rest); }
};

// Merges the tiles' sums. `rest` and its stride say which field or array holds them; exponents are divided by
// `temperature`.
__device__ __forceinline__ Normaliser merge(const float* records, const float* rest, int rest_stride, int tiles,
                                            const RowMaxima& row, double temperature, int lane) {
  const TileRun run(tiles, lane);
  const double inverse = 1.0 / temperature;
  Normaliser sum{0.0, 0.0};
#pragma unroll 1
  for (int j = run.begin; j < run.end; ++j) {
    const Partial p = load_partial(records + std::int64_t{j} * kPartialFields);
    if (p.top == -kInfinity) continue;
    const double shift = (static_cast<double>(p.top) - row.top) * inverse, scale = exp(shift);
    const double r = load(rest + std::int64_t{j} * rest_stride);
    sum.rest += scale * (j == row.top_tile ? r : 1.0 + r);
    sum.moment += scale * (p.moment + shift * (1.0 + r));
  }
  return {warp_sum(sum.rest), warp_sum(sum.moment)};
}

struct RowScore {
  std::int64_t token;
  float logp, logp_tempered, margin, entropy;
};

__device__ __forceinline__ RowScore padding_score() { return {kPaddingRow, -kInfinity, -kInfinity, 0.0f, 0.0f}; }

__device__ __forceinline__ RowScore failed_score(int code) {
  const float nan = as_float(0x7fffffffu);
  return {code, nan, nan, nan, nan};
}

// The tempered (and filtered) distribution of a row.
struct TemperedRow {
  const float* records;  // [tiles, 8]
  const float* rest;     // its normaliser's rest, tile j at j rest_stride
  int rest_stride;
  RowMaxima maxima;
  double temperature;
};

// The normalisers of a row that some statistic needs.
struct RowSums {
  Normaliser plain, tempered;
};

// `records` holds the plain distribution; a moment is of the plain or of the tempered one, as stats_tempered says.
__device__ __forceinline__ RowSums row_sums(const FinishOptions& options, const float* records, int tiles,
                                            const RowMaxima& maxima, const TemperedRow& tempered, int lane) {
  RowSums sums{};
  if ((options.stats & kLogp) != 0 || ((options.stats & (kMargin | kEntropy)) != 0 && !options.stats_tempered))
    sums.plain = merge(records, records + kRestField, kPartialFields, tiles, maxima, 1.0, lane);
  if (options.needs_tempered)
    sums.tempered = merge(tempered.records, tempered.rest, tempered.rest_stride, tiles, tempered.maxima,
                          tempered.temperature, lane);
  return sums;
}

// What is reported of a row whose token is chosen.
__device__ __forceinline__ RowScore describe(const FinishOptions& options, const RowMaxima& maxima,
                                             const TemperedRow& tempered, const RowSums& sums, std::int64_t token,
                                             float logit) {
  RowScore score{token, 0.0f, 0.0f, 0.0f, 0.0f};
  if ((options.stats & kLogp) != 0)
    score.logp = static_cast<float>((static_cast<double>(logit) - maxima.top) - sums.plain.log_sum());
  if ((options.stats & kLogpTempered) != 0) {
    const double distance = (static_cast<double>(logit) - tempered.maxima.top) / tempered.temperature;
    score.logp_tempered = static_cast<float>(distance - sums.tempered.log_sum());
  }
  if ((options.stats & (kMargin | kEntropy)) != 0) {
    // Values are selected, not one of two structures: choosing an address would put both in memory.
    const double top = options.stats_tempered ? tempered.maxima.top : maxima.top;
    const double best = options.stats_tempered ? tempered.maxima.best : maxima.best;
    const double second = options.stats_tempered ? tempered.maxima.second : maxima.second;
    const double divisor = options.stats_tempered ? tempered.temperature : 1.0;
    const Normaliser normaliser{options.stats_tempered ? sums.tempered.rest : sums.plain.rest,
                                options.stats_tempered ? sums.tempered.moment : sums.plain.moment};
    score.margin = static_cast<float>(exp((best - top) / divisor) * -expm1((second - best) / divisor) /
                                      (1.0 + normaliser.rest));
    const double entropy = normaliser.log_sum() - normaliser.moment / (1.0 + normaliser.rest);
    score.entropy = static_cast<float>(entropy > 0.0 ? entropy : 0.0);
  }
  return score;
}

// The tempered distribution of a row without filters, where the records tell it: if the normaliser holds the candidates
// alone their mass is its rest, and at temperature 1 it is the plain one.
__device__ __forceinline__ TemperedRow unfiltered(const float* records, const float* tempered_rest, bool normalize_all,
                                                  const RowMaxima& maxima, float temperature) {
  if (temperature == 1.0f) return {records, records + kRestField, kPartialFields, maxima, 1.0};
  if (normalize_all) return {records, tempered_rest, 1, maxima, temperature};
  return {records, records + kMassField, kPartialFields, maxima, temperature};
}

// A greedy row, from its records alone. `tempered_rest` ([tiles], or null) is read only with normalize_all and a
// temperature other than 1, and only if a tempered statistic is asked for.
__device__ __forceinline__ RowScore finish_greedy(const FinishOptions& options, const float* records,
                                                  const float* tempered_rest, int tiles, bool normalize_all,
                                                  float temperature, int lane) {
  const RowMaxima maxima = row_maxima(records, tiles, lane);
  if (maxima.code != 0) return failed_score(maxima.code);
  const TemperedRow tempered = unfiltered(records, tempered_rest, normalize_all, maxima, temperature);
  const RowSums sums = row_sums(options, records, tiles, maxima, tempered, lane);
  return describe(options, maxima, tempered, sums, maxima.best_id, maxima.best);
}

}  // namespace mdlm_fast::cuda
