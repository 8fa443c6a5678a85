// Top-k and top-p without sorting the row: the smallest logit they keep.
#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>

#include "../common/ordered_key.h"
#include "score_row.h"

namespace mdlm_fast::cpu {
namespace {

constexpr int kBins = 4096;  // of the ordered key's top 12 bits: sign, exponent and three bits of the mantissa
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

int bin_of(float z) { return static_cast<int>(ordered_key(z) >> 20); }

}  // namespace

int RowScorer::candidate_values(const void* logits, const void* guidance, std::int64_t j, float pivot, float* out,
                                ScoreScratch& scratch) const {
  const int n = values(logits, guidance, j, out, scratch);
  exclude(out, j, kMinusInfinity);
  for (int i = 0; i < n; ++i) out[i] = out[i] >= pivot ? out[i] : kMinusInfinity;
  return n;
}

// Both filters keep every id tied with their pivot, and top-k counts among what top-p kept, so together they keep the
// logits from the larger of two pivots up: the k-th largest, and the largest value from which up the mass reaches
// top_p of all. One pass counts by bins of the key, the bin that holds a pivot is then sorted.
float RowScorer::filter_pivot(float temperature, float best, TileReader& reader, ScoreScratch& scratch) const {
  const float inverse_temperature = 1.0f / std::max(temperature, 1e-30f);
  const std::int64_t tiles = options_.tiles();
  scratch.row.clear();
  scratch.weight.clear();
  scratch.bin_count.assign(kBins, 0);
  scratch.bin_mass.assign(kBins, 0.0);
  double total = 0;
  for (std::int64_t j = 0; j < tiles; ++j) {
    float* z = scratch.candidates;
    float* weight = scratch.normaliser;
    const int n = candidate_values(reader.logits(j), reader.guidance(j), j, kMinusInfinity, z, scratch);
    kernels_->weights(z, n, best, inverse_temperature, weight);
    for (int i = 0; i < n; ++i) {
      if (z[i] == kMinusInfinity) continue;
      const int bin = bin_of(z[i]);
      ++scratch.bin_count[bin];
      scratch.bin_mass[bin] += weight[i];
      scratch.row.push_back(z[i]);
      scratch.weight.push_back(weight[i]);
    }
  }
  for (const double mass : scratch.bin_mass) total += mass;

  // The largest value v such that the count, or the mass, of all values from v up reaches what is wanted.
  const auto pivot = [&](bool by_mass, double wanted) {
    double above = 0;
    int bin = kBins - 1;
    for (; bin >= 0; --bin) {
      const double inside = by_mass ? scratch.bin_mass[bin] : scratch.bin_count[bin];
      if (above + inside >= wanted) break;
      above += inside;
    }
    if (bin < 0) return kMinusInfinity;
    auto& inside = scratch.sorted;
    inside.clear();
    for (std::size_t i = 0; i < scratch.row.size(); ++i)
      if (bin_of(scratch.row[i]) == bin) inside.emplace_back(scratch.row[i], scratch.weight[i]);
    std::sort(inside.begin(), inside.end(), std::greater<>());
    for (const auto& [value, weight] : inside) {
      above += by_mass ? weight : 1.0;
      if (above >= wanted) return value;
    }
    return inside.back().first;  // the bin's mass, summed in another order, was larger by a rounding
  };
  float result = kMinusInfinity;
  if (options_.top_p < 1.0) result = std::max(result, pivot(true, options_.top_p * total));
  if (options_.top_k > 0) result = std::max(result, pivot(false, options_.top_k));
  return result;
}

}  // namespace mdlm_fast::cpu
