// From the statistics of a row's tiles to its token, log-probabilities, margin and entropy.
#include <algorithm>
#include <cmath>
#include <limits>

#include "../common/philox.h"
#include "score_row.h"

namespace mdlm_fast::cpu {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// A merged row: maximum, sum of exp(z - maximum) without the maximum's own 1, and moment.
struct Normaliser {
  double top = kMinusInfinity, rest = 0, moment = 0;
  double log_sum() const { return std::log1p(rest); }
};

Normaliser merge(const TileRecord* records, std::int64_t tiles, bool tempered, bool has_moment, bool moment_tempered,
                 double inverse_temperature) {
  Normaliser row;
  std::int64_t at = 0;
  for (std::int64_t j = 0; j < tiles; ++j)
    if (records[j].top > row.top) {
      row.top = records[j].top;
      at = j;
    }
  for (std::int64_t j = 0; j < tiles; ++j) {
    if (records[j].top == -std::numeric_limits<float>::infinity()) continue;
    const double gap = records[j].top - row.top, shift = tempered ? gap * inverse_temperature : gap;
    const double scale = std::exp(shift), rest = tempered ? records[j].tempered_rest : records[j].rest;
    row.rest += scale * (j == at ? rest : 1.0 + rest);
    if (has_moment && moment_tempered == tempered) row.moment += scale * (records[j].moment + shift * (1.0 + rest));
  }
  return row;
}

struct Best {
  double value = kMinusInfinity, second = kMinusInfinity;
  std::int64_t id = -1;
};

Best merge_best(const TileRecord* records, std::int64_t tiles) {
  Best row;
  for (std::int64_t j = 0; j < tiles; ++j) {
    const double value = records[j].best;
    if (value > row.value) {
      row.second = std::max<double>(row.value, records[j].second);
      row.value = value;
      row.id = records[j].best_id;
    } else {
      row.second = std::max(row.second, value);
    }
  }
  return row;
}

// 0, or why the row cannot be scored.
std::int64_t row_code(const TileRecord* records, std::int64_t tiles) {
  bool nan = false, inf = false, any = false;
  for (std::int64_t j = 0; j < tiles; ++j) {
    nan |= std::isnan(records[j].top) || std::isnan(records[j].best);
    inf |= records[j].top == std::numeric_limits<float>::infinity();
    any |= records[j].best_id >= 0;
  }
  return nan ? kNanRow : inf ? kInfRow : any ? 0 : kEmptyRow;
}

}  // namespace

RowScore RowScorer::finish(const RowInputs& row, const TileRecord* records, TileReader& reader, ScoreScratch& scratch,
                           bool tempered_rest_known) const {
  const std::int64_t tiles = options_.tiles();
  if (const std::int64_t code = row_code(records, tiles); code != 0) return {code, kNan, kNan, kNan, kNan};

  const float temperature = row.unit_temperature();
  const double inverse_temperature = 1.0 / std::max<double>(temperature, 1e-30);
  const bool sampled = options_.sample && row.temperature > 0;
  const bool needs_tempered = options_.needs_tempered();
  const bool entropy = options_.wants(kEntropy);
  const Best best = merge_best(records, tiles);

  const TileRecord* tempered_records = records;
  float pivot = -std::numeric_limits<float>::infinity();
  const bool filtered = options_.filtered() && (sampled || needs_tempered);
  if (filtered || (needs_tempered && !tempered_rest_known && options_.normalize_all)) {
    if (filtered) pivot = filter_pivot(temperature, static_cast<float>(best.value), reader, scratch);
    const Sums sums = entropy && options_.stats_tempered ? Sums::kMoment : Sums::kSum;
    const bool pair = options_.stats_tempered && options_.wants(kMargin);
    const float second_above = pair ? kMinusInfinity : -kMinusInfinity;
    Plan plan{Sums::kNone, Sums::kNone, second_above};
    (temperature == 1.0f ? plan.raw : plan.tempered) = sums;
    scratch.filtered_records.resize(tiles);
    for (std::int64_t j = 0; j < tiles; ++j)
      scratch.filtered_records[j] =
          compute(plan, temperature, reader.logits(j), reader.guidance(j), j, pivot, scratch);
    tempered_records = scratch.filtered_records.data();
  }

  RowScore score{best.id, kNan, kNan, kNan, kNan};
  double logit = best.value;
  if (sampled) score.token = draw(row, tempered_records, pivot, reader, scratch, &logit);

  const bool shape = options_.wants(kMargin) || entropy;
  Normaliser raw, tempered;
  if (options_.wants(kLogp) || (shape && !options_.stats_tempered)) {
    raw = merge(records, tiles, false, entropy, options_.stats_tempered, 1.0);
    score.logp = static_cast<float>((logit - raw.top) - raw.log_sum());
  }
  if (needs_tempered) {
    tempered = merge(tempered_records, tiles, true, entropy, options_.stats_tempered, inverse_temperature);
    score.logp_tempered = static_cast<float>((logit - tempered.top) * inverse_temperature - tempered.log_sum());
  }
  if (shape) {
    const Normaliser& normaliser = options_.stats_tempered ? tempered : raw;
    const double scale = options_.stats_tempered ? inverse_temperature : 1.0;
    if (options_.wants(kMargin)) {
      const Best pair = options_.stats_tempered ? merge_best(tempered_records, tiles) : best;
      // expm1 keeps the digits of a close pair.
      score.margin = static_cast<float>(std::exp((pair.value - normaliser.top) * scale) *
                                        -std::expm1((pair.second - pair.value) * scale) / (1.0 + normaliser.rest));
    }
    if (entropy) {
      const double value = normaliser.log_sum() - normaliser.moment / (1.0 + normaliser.rest);
      score.entropy = static_cast<float>(std::max(value, 0.0));
    }
  }
  return score;
}

std::int64_t RowScorer::drawn_tile(const RowInputs& row, const TileRecord* records, ScoreScratch& scratch) const {
  if (!options_.sample || row.temperature <= 0 || row_code(records, options_.tiles()) != 0) return -1;
  double residual;
  return draw_tile(row, records, scratch, &residual);
}

std::int64_t RowScorer::draw_tile(const RowInputs& row, const TileRecord* records, ScoreScratch& scratch,
                                  double* residual) const {
  const std::int64_t tiles = options_.tiles();
  const double inverse_temperature = 1.0 / std::max<double>(row.unit_temperature(), 1e-30);
  const double best = merge_best(records, tiles).value;

  const auto scale = [&](std::int64_t j) { return std::exp((records[j].best - best) * inverse_temperature); };
  scratch.mass.assign(tiles, 0.0);
  double total = 0;
  for (std::int64_t j = 0; j < tiles; ++j) {
    if (records[j].best_id >= 0) total += (1.0 + records[j].mass_rest) * scale(j);
    scratch.mass[j] = total;
  }
  const double target = total * philox_uniform(row.seed, row.position, row.step, kTokenStream);
  std::int64_t j = std::upper_bound(scratch.mass.begin(), scratch.mass.end(), target) - scratch.mass.begin();
  if (j == tiles)
    for (j = tiles - 1; j > 0 && scratch.mass[j] == scratch.mass[j - 1];) --j;
  *residual = (target - (j > 0 ? scratch.mass[j - 1] : 0.0)) / scale(j);
  return j;
}

std::int64_t RowScorer::draw(const RowInputs& row, const TileRecord* records, float pivot, TileReader& reader,
                             ScoreScratch& scratch, double* logit) const {
  double residual;
  const std::int64_t j = draw_tile(row, records, scratch, &residual);

  // The column, by the same rule, with the same weights as in the tile's mass.
  float* z = scratch.candidates;
  float* weight = scratch.normaliser;
  const int n = candidate_values(reader.logits(j), reader.guidance(j), j, pivot, z, scratch);
  kernels_->weights(z, n, records[j].best, 1.0f / std::max(row.unit_temperature(), 1e-30f), weight);
  double cumulative = 0;
  int chosen = static_cast<int>(records[j].best_id - options_.vocab_start - j * kTileColumns);
  for (int i = 0; i < n; ++i) {
    if (!(weight[i] > 0)) continue;
    cumulative += weight[i];
    chosen = i;
    if (cumulative > residual) break;
  }
  *logit = z[chosen];
  return options_.vocab_start + j * kTileColumns + chosen;
}

}  // namespace mdlm_fast::cpu
