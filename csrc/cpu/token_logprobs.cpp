#include "token_logprobs.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "token_logprobs_kernels.h"

namespace mdlm_fast::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// -inf in each storage type.
constexpr std::uint16_t minus_infinity_bits(DType dtype) { return dtype == DType::kBFloat16 ? 0xff80 : 0xfc00; }

void fill_minus_infinity(void* tile, DType dtype, std::int64_t begin, std::int64_t end) {
  if (dtype == DType::kFloat32) {
    std::fill(static_cast<float*>(tile) + begin, static_cast<float*>(tile) + end, -kInfinity);
  } else {
    std::uint16_t* words = static_cast<std::uint16_t*>(tile);
    std::fill(words + begin, words + end, minus_infinity_bits(dtype));
  }
}

const char* at(const void* row, DType dtype, std::int64_t column) {
  return static_cast<const char*>(row) + column * static_cast<std::int64_t>(size_of(dtype));
}

}  // namespace

const void* allowed_tile(const void* row, DType dtype, std::int64_t width, std::int64_t vocab_start, std::int64_t tile,
                         const AllowedIds& ids, void* scratch, int* columns) {
  const std::int64_t first = tile * kTileColumns, first_id = vocab_start + first;
  const std::int64_t count = std::min({static_cast<std::int64_t>(kTileColumns), width - first, ids.limit - first_id});
  *columns = 0;
  if (count <= 0) return nullptr;
  const void* from = at(row, dtype, first);
  auto hole = std::lower_bound(ids.forbidden.begin(), ids.forbidden.end(), first_id);
  const auto end = std::lower_bound(hole, ids.forbidden.end(), first_id + count);
  const std::int64_t whole = (count + kBlockColumns - 1) / kBlockColumns * kBlockColumns;
  *columns = static_cast<int>(whole);
  if (whole == count && hole == end) return from;
  std::memcpy(scratch, from, static_cast<std::size_t>(count) * size_of(dtype));
  fill_minus_infinity(scratch, dtype, count, whole);
  for (; hole != end; ++hole) fill_minus_infinity(scratch, dtype, *hole - first_id, *hole - first_id + 1);
  return scratch;
}

TileStats logprob_tile(const void* row, DType dtype, std::int64_t width, std::int64_t vocab_start, std::int64_t tile,
                       const AllowedIds& ids, float inverse_temperature, bool need_entropy) {
  alignas(64) float scratch[kTileColumns];
  int columns;
  const void* z = allowed_tile(row, dtype, width, vocab_start, tile, ids, scratch, &columns);
  TileStats stats{-kInfinity, -kInfinity, -1, 0.0f, 0.0f, 0.0f, 0.0f};
  if (columns == 0) return stats;
  score_kernels().tile[static_cast<int>(dtype)][0][need_entropy ? 2 : 1](z, columns, inverse_temperature, kInfinity, &stats);
  return stats;
}

RowLogprob merge_logprob(const TileStats* tiles, std::int64_t num_tiles, float target_logit, double temperature,
                         bool need_entropy) {
  std::int64_t best = -1;
  bool infinite = false;
  for (std::int64_t t = 0; t < num_tiles; ++t) {
    if (tiles[t].max != tiles[t].max) return {kNaN, kNaN, kNaN};
    infinite = infinite || tiles[t].max == kInfinity;
    if (tiles[t].argmax >= 0 && (best < 0 || tiles[t].max > tiles[best].max)) best = t;
  }
  if (infinite) return {kNaN, kNaN, kInfinity};
  if (best < 0) return {kNaN, kNaN, -kInfinity};
  const double max = tiles[best].max;
  double others = 0.0, moment = 0.0;
  for (std::int64_t t = 0; t < num_tiles; ++t) {
    if (tiles[t].argmax < 0) continue;
    const double distance = (tiles[t].max - max) / temperature, scale = std::exp(distance);
    // Of the best tile's maximum, the whole row's, the own 1 stays outside.
    const double sum = static_cast<double>(tiles[t].tempered_sum) + (t == best ? 0.0 : 1.0);
    others += scale * sum;
    if (need_entropy && scale > 0.0) moment += scale * (tiles[t].tempered_moment + distance * sum);
  }
  const double log_sum = std::log1p(others);
  const double distance = target_logit == -kInfinity ? -static_cast<double>(kInfinity)
                                                     : (static_cast<double>(target_logit) - max) / temperature;
  return {distance - log_sum, need_entropy ? log_sum - moment / (1.0 + others) : 0.0, max / temperature + log_sum};
}

float allowed_logit(const void* row, DType dtype, std::int64_t vocab_start, std::int64_t id, const AllowedIds& ids) {
  if (id >= ids.limit || std::binary_search(ids.forbidden.begin(), ids.forbidden.end(), id)) return -kInfinity;
  float value;
  score_kernels().widen[static_cast<int>(dtype)](at(row, dtype, id - vocab_start), 1, &value);
  return value;
}

void gradient_tile(const void* row, void* out_row, DType dtype, std::int64_t width, std::int64_t vocab_start,
                   std::int64_t tile, const AllowedIds& ids, const RowGradient* gradients, std::int64_t count,
                   bool need_entropy) {
  alignas(64) float scratch[kTileColumns], z[kTileColumns], weight[kTileColumns], gradient[kTileColumns];
  const ScoreKernels& kernels = score_kernels();
  const GradientKernels& loops = gradient_kernels();
  const std::int64_t first = tile * kTileColumns, first_id = vocab_start + first;
  const int real = static_cast<int>(std::min<std::int64_t>(kTileColumns, width - first));
  std::fill(gradient, gradient + real, 0.0f);
  int columns;
  const void* allowed = allowed_tile(row, dtype, width, vocab_start, tile, ids, scratch, &columns);
  if (columns > 0) {
    kernels.widen[static_cast<int>(dtype)](allowed, columns, z);
    for (std::int64_t i = 0; i < count; ++i) {
      const RowGradient& g = gradients[i];
      // exp((z - T lse)/T) with T lse split into a float and a remainder, which becomes a factor near 1.
      const double scaled = g.lse * g.temperature;
      const float center = static_cast<float>(scaled), inverse_temperature = static_cast<float>(1.0 / g.temperature);
      const double log_factor = (static_cast<double>(center) - scaled) / g.temperature;
      kernels.weights(z, columns, center, inverse_temperature, weight);
      const float scale = static_cast<float>(g.grad_logp / g.temperature);
      const GradientLoop loop{std::min(columns, real), z, weight, static_cast<float>(std::exp(log_factor)),
                              static_cast<float>(log_factor), center, inverse_temperature, scale,
                              static_cast<float>(g.grad_entropy / g.temperature), g.entropy};
      (need_entropy ? loops.subtract_with_entropy : loops.subtract)(loop, gradient);
      if (g.target >= first_id && g.target < first_id + real) gradient[g.target - first_id] += scale;
    }
  }
  char* out = static_cast<char*>(out_row) + first * static_cast<std::int64_t>(size_of(dtype));
  loops.narrow[static_cast<int>(dtype)](gradient, real, out);
}

}  // namespace mdlm_fast::cpu
