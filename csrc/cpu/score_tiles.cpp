// Statistics of one tile: which columns count, and the vector kernel that goes over them.
#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "score_row.h"

namespace mdlm_fast::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

std::uint16_t minus_infinity_word(DType dtype) { return dtype == DType::kBFloat16 ? 0xff80 : 0xfc00; }

int padded(int n) { return (n + kBlockColumns - 1) / kBlockColumns * kBlockColumns; }

}  // namespace

RowScorer::RowScorer(ScoreOptions options) : options_(std::move(options)), kernels_(&score_kernels()) {
  std::sort(options_.forbidden.begin(), options_.forbidden.end());
}

int RowScorer::columns(std::int64_t j) const {
  return static_cast<int>(std::min<std::int64_t>(kTileColumns, options_.width - j * kTileColumns));
}

bool RowScorer::excludes(std::int64_t j) const {
  const std::int64_t begin = options_.vocab_start + j * kTileColumns, end = begin + columns(j);
  const auto forbidden = std::lower_bound(options_.forbidden.begin(), options_.forbidden.end(), begin);
  return end > options_.vocab_limit || (forbidden != options_.forbidden.end() && *forbidden < end);
}

template <class Element>
void RowScorer::exclude(Element* tile, std::int64_t j, Element minus_infinity) const {
  const int n = columns(j);
  const std::int64_t begin = options_.vocab_start + j * kTileColumns, end = begin + n;
  auto id = std::lower_bound(options_.forbidden.begin(), options_.forbidden.end(), begin);
  for (; id != options_.forbidden.end() && *id < end; ++id) tile[*id - begin] = minus_infinity;
  const std::int64_t limit = std::clamp<std::int64_t>(options_.vocab_limit - begin, 0, n);
  std::fill(tile + limit, tile + n, minus_infinity);
}

int RowScorer::values(const void* logits, const void* guidance, std::int64_t j, float* out,
                      ScoreScratch& scratch) const {
  const int n = columns(j), whole = padded(n);
  const auto widen = kernels_->widen[static_cast<int>(options_.dtype)];
  widen(logits, n, out);
  if (guidance != nullptr && options_.guidance_scale != 0.0) {
    widen(guidance, n, scratch.guidance);
    const float s = static_cast<float>(options_.guidance_scale);
    const float s1 = static_cast<float>(options_.guidance_scale + 1.0);
    // An id at -inf stays there: -inf - (-inf) would refuse the row for NaN.
    for (int i = 0; i < n; ++i) out[i] = out[i] == kMinusInfinity ? out[i] : s1 * out[i] - s * scratch.guidance[i];
  }
  std::fill(out + n, out + whole, kMinusInfinity);
  return whole;
}

template <class Element>
void RowScorer::copy_tile(const Element* tile, std::int64_t j, Element minus_infinity, Element* out) const {
  const int n = columns(j);
  std::memcpy(out, tile, n * sizeof(Element));
  std::fill(out + n, out + padded(n), minus_infinity);
  exclude(out, j, minus_infinity);
}

RowScorer::Plan RowScorer::plan(const RowInputs& row) const {
  const bool is_tempered = row.unit_temperature() != 1.0f, filtered = options_.filtered();
  const bool sampled = options_.sample && row.temperature > 0;
  const bool entropy = options_.wants(kEntropy), margin = options_.wants(kMargin);
  const bool shape_raw = !options_.stats_tempered, shape_tempered = options_.stats_tempered;
  // With filters, everything tempered is formed once more over what they keep.
  const bool tempered = !filtered && (sampled || options_.needs_tempered());
  Plan plan{Sums::kNone, Sums::kNone, margin ? kMinusInfinity : -kMinusInfinity};
  if (options_.wants(kLogp) || (shape_raw && (margin || entropy)) || (tempered && !is_tempered)) plan.raw = Sums::kSum;
  if (entropy && (shape_raw || (tempered && !is_tempered))) plan.raw = Sums::kMoment;
  if (tempered && is_tempered) plan.tempered = entropy && shape_tempered ? Sums::kMoment : Sums::kSum;
  return plan;
}

TileRecord RowScorer::tile(const RowInputs& row, const void* logits, const void* guidance, std::int64_t j,
                           ScoreScratch& scratch, float best_so_far) const {
  Plan wanted = plan(row);
  wanted.second_above = std::max(wanted.second_above, best_so_far);
  return compute(wanted, row.unit_temperature(), logits, guidance, j, kMinusInfinity, scratch);
}

TileRecord RowScorer::partial(const RowInputs& row, const void* logits, const void* guidance, std::int64_t j,
                              ScoreScratch& scratch) const {
  const bool is_tempered = row.unit_temperature() != 1.0f, entropy = options_.wants(kEntropy);
  Plan plan{Sums::kSum, is_tempered ? Sums::kSum : Sums::kNone, kMinusInfinity};
  if (entropy) (is_tempered && options_.stats_tempered ? plan.tempered : plan.raw) = Sums::kMoment;
  return compute(plan, row.unit_temperature(), logits, guidance, j, kMinusInfinity, scratch);
}

TileRecord RowScorer::compute(const Plan& plan, float temperature, const void* logits, const void* guidance,
                              std::int64_t j, float pivot, ScoreScratch& scratch) const {
  const int n = columns(j), whole = padded(n);
  const std::int64_t begin = options_.vocab_start + j * kTileColumns;
  if (!options_.normalize_all && begin >= options_.vocab_limit) return kEmptyTile;
  const bool some_excluded = excludes(j), has_pivot = pivot > kMinusInfinity;

  // Most tiles are scored where they lie. The others are copied, with -inf at the columns that do not count.
  const void* candidates = logits;
  const void* normaliser = logits;
  DType dtype = options_.dtype;
  if (guidance != nullptr || has_pivot || (some_excluded && options_.normalize_all)) {
    dtype = DType::kFloat32;
    values(logits, guidance, j, scratch.candidates, scratch);
    candidates = normaliser = scratch.candidates;
    if (options_.normalize_all && some_excluded) {
      std::memcpy(scratch.normaliser, scratch.candidates, whole * sizeof(float));
      normaliser = scratch.normaliser;
    }
    exclude(scratch.candidates, j, kMinusInfinity);
    if (has_pivot)
      for (int i = 0; i < n; ++i) {
        if (!(scratch.candidates[i] < pivot)) continue;
        if (scratch.candidates[i] > kMinusInfinity) scratch.normaliser[i] = kMinusInfinity;
        scratch.candidates[i] = kMinusInfinity;
      }
  } else if (some_excluded || whole != n) {
    candidates = normaliser = scratch.candidates;
    if (dtype == DType::kFloat32) copy_tile(static_cast<const float*>(logits), j, kMinusInfinity, scratch.candidates);
    else
      copy_tile(static_cast<const std::uint16_t*>(logits), j, minus_infinity_word(dtype),
                reinterpret_cast<std::uint16_t*>(scratch.candidates));
  }

  // A temperature below 1e-30 is as good as 0 there, and its inverse still finite.
  const float inverse_temperature = 1.0f / std::max(temperature, 1e-30f);
  const auto run = [&](const void* tile) {
    TileStats stats{};
    kernels_->tile[static_cast<int>(dtype)][static_cast<int>(plan.raw)][static_cast<int>(plan.tempered)](
        tile, whole, inverse_temperature, plan.second_above, &stats);
    if (temperature == 1.0f) {
      stats.tempered_sum = stats.sum;
      stats.tempered_moment = stats.moment;
    }
    return stats;
  };
  const TileStats best = run(candidates), top = normaliser == candidates ? best : run(normaliser);
  const auto global_id = [&](int column) { return column < 0 ? -1 : static_cast<std::int32_t>(begin + column); };
  const float moment = options_.stats_tempered ? top.tempered_moment : top.moment;
  return {top.max,     global_id(top.argmax), best.max,          global_id(best.argmax),
          best.second, top.sum,               best.tempered_sum, moment,
          top.tempered_sum};
}

}  // namespace mdlm_fast::cpu
