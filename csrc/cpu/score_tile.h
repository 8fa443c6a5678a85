// The vector kernels of scoring, written once over the types of simd_*.h and compiled once per instruction set.
//
// A tile is read twice while it lies in the L1 cache: first for its maximum, then for the sums of exp(z - max) against
// that fixed maximum, so that the second loop needs no rescaling. During the second loop the next tile is prefetched.
//
// exp(d): with y = d * 32 log2(e), n the nearest whole number and f = y - n, exp(d) = 2^(n/32) * 2^(f/32). The first
// factor comes from a table of 32 and an addition to the exponent bits; the second is 1 + f (c1 + f c2), whose two
// coefficients minimise the largest relative error over |f| <= 1/2: 5.3e-8. Below exp(-87) the result is exactly 0.
#pragma once

#include "score_formats.h"

namespace mdlm_fast::MDLM_ISA {
namespace {

using cpu::ScoreKernels;
using cpu::TileStats;

constexpr float kLeastExponent = -87.0f;
constexpr float kStepsPerUnit = 0x1.715476p+5f;  // 32 log2(e)
constexpr float kRound = 0x1.8p23f;              // adding it leaves the nearest whole number in the low bits
constexpr float kC1 = 0x1.62e584p-6f, kC2 = 0x1.ebfbe2p-13f;

// float(2^(j/32)) as bits, less j << 18, which the whole-number part n << 18 puts back.
alignas(64) constexpr std::int32_t kExpTable[32] = {
    0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a, 0x3f79c3d3, 0x3f78f4f0,
    0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6,
    0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be, 0x3f76248c, 0x3f76a81e,
    0x3f7744fd, 0x3f77fbb8, 0x3f78ccdf, 0x3f79b907, 0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3,
};

// The constants of one temperature.
struct ExpArgument {
  Floats scale, least;
  MDLM_INLINE explicit ExpArgument(float inverse_temperature)
      : scale(splat(kStepsPerUnit * inverse_temperature)), least(splat(kLeastExponent / inverse_temperature)) {}
};

// exp(d / T) as the product power * factor, which a fused multiply-add forms without rounding; the mask of the lanes in
// range (or NaN, which is kept), elsewhere the product means nothing; and d as it was used.
struct ExpResult {
  Floats power, factor, d;
  Mask in_range;
};

MDLM_INLINE ExpResult exponential(Floats d, const ExpArgument& argument, const ExpTable& table) {
  const Mask in_range = not_below(d, argument.least);
  d = clamp_below(d, argument.least);
  const Floats shifted = fused(d, argument.scale, splat(kRound));
  const Floats f = fused_minus(d, argument.scale, shifted - splat(kRound));
  const Floats power = table(shifted);
  return {keep(in_range, power), fused(fused(f, splat(kC2), splat(kC1)), f, splat(1.0f)), d, in_range};
}

// The first column equal to the maximum, which is there.
template <class Type>
MDLM_INLINE int find(const typename Type::Element* p, int n, float max) {
  constexpr int kBlocks = 4 / sizeof(typename Type::Element);
  int i = 0;
  for (; i + kBlocks * kBlockColumns <= n; i += kBlocks * kBlockColumns) {
    auto found = Type::matches(p + i, max);
    for (int k = 1; k < kBlocks; ++k) found = any_of(found, Type::matches(p + i + k * kBlockColumns, max));
    if (any(found)) break;
  }
  for (; i < n; i += kBlockColumns)
    if (const std::uint64_t where = Type::match_columns(p + i, max); where != 0) return i + __builtin_ctzll(where);
  return -1;
}

struct Sum {
  Floats sum[4], moment[4];
  MDLM_INLINE Sum() {
    for (int k = 0; k < 4; ++k) sum[k] = moment[k] = splat(0);
  }
  template <int kSums>
  MDLM_INLINE void add(int k, Floats d, const ExpArgument& argument, const ExpTable& table) {
    const ExpResult e = exponential(d, argument, table);
    sum[k] = fused_where(e.in_range, e.power, e.factor, sum[k]);
    if constexpr (kSums == 2) moment[k] = fused_where(e.in_range, e.power * e.d, e.factor, moment[k]);
  }
  static MDLM_INLINE float total(const Floats* x) { return reduce_add((x[0] + x[2]) + (x[1] + x[3])); }
};

template <class Type, int kRaw, int kTempered>
void tile_stats(const void* data, int n, float inverse_temperature, float second_above, TileStats* out) {
  using Element = typename Type::Element;
  constexpr bool kSums = kRaw > 0 || kTempered > 0;
  Tile<Element> tile{static_cast<const Element*>(data), n};
  const Maximum max = Type::template maximum_of<!kSums>(tile);
  out->max = max.nan ? __builtin_nanf("") : max.value;
  out->second = -kInfinity;
  out->argmax = -1;
  if (max.nan) return;
  if (max.value == kInfinity) {  // z - max would be NaN at every +inf, so look for true ones
    if (Type::template maximum_of<true>(tile).nan) out->max = __builtin_nanf("");
    return;
  }
  // The maximum's own 1 never enters the sums: its block is read from a copy that lacks it.
  alignas(64) Element hole[kBlockColumns];
  const bool empty = max.value == -kInfinity;
  if (!empty) {
    out->argmax = find<Type>(tile.data, n, max.value);
    if (max.value == 0.0f && sizeof(Element) == 2) {  // compared as bits above, but -0 ties with +0
      const int other = find<Type>(tile.data, n, -max.value);
      out->argmax = other >= 0 && other < out->argmax ? other : out->argmax;
    }
    tile.hole_at = out->argmax & -kBlockColumns;
    tile.hole = hole;
    __builtin_memcpy(hole, tile.data + tile.hole_at, sizeof(hole));
    hole[out->argmax - tile.hole_at] = Type::kMinusInfinity;
    if (max.value > second_above) out->second = Type::template maximum_of<false>(tile).value;
  }
  if constexpr (kSums) {
    const Floats reference = splat(empty ? 0.0f : max.value);
    const ExpTable table(kExpTable);
    const ExpArgument raw(1.0f), tempered(inverse_temperature);
    Sum raw_sum, tempered_sum;
    for (int half = 0; half < 2; half += kHalvesAtOnce)
      for (int i = 0; i < n; i += kBlockColumns) {
        const Element* block = tile.block(i);
        if (half == 0)
          for (std::size_t line = 0; line < kBlockColumns * sizeof(Element); line += 64)
            prefetch(reinterpret_cast<const char*>(tile.data + n + i) + line);
        for (int h = half; h < half + kHalvesAtOnce; ++h) {
          Floats x[2];
          Type::load_half(block + 32 * h, x[0], x[1]);
          for (int k = 0; k < 2; ++k) {
            const Floats d = x[k] - reference;
            if constexpr (kRaw > 0) raw_sum.add<kRaw>(2 * h + k, d, raw, table);
            if constexpr (kTempered > 0) tempered_sum.add<kTempered>(2 * h + k, d, tempered, table);
          }
        }
      }
    if constexpr (kRaw > 0) out->sum = Sum::total(raw_sum.sum);
    if constexpr (kRaw == 2) out->moment = Sum::total(raw_sum.moment);
    if constexpr (kTempered > 0) out->tempered_sum = Sum::total(tempered_sum.sum);
    if constexpr (kTempered == 2) out->tempered_moment = inverse_temperature * Sum::total(tempered_sum.moment);
    const float check = kRaw > 0 ? out->sum : out->tempered_sum;
    if (check != check) out->max = check;
  }
}

template <class Type>
void widen(const void* tile, int n, float* out) {
  using Element = typename Type::Element;
  const Element* p = static_cast<const Element*>(tile);
  for (int i = 0; i < n; ++i)
    if constexpr (sizeof(Element) == 4) out[i] = p[i];
    else out[i] = Type::value(static_cast<std::int16_t>(p[i] ^ ((p[i] & 0x8000) != 0 ? 0x7fff : 0)));
}

void weights(const float* z, int n, float max, float inverse_temperature, float* out) {
  const ExpTable table(kExpTable);
  const ExpArgument argument(inverse_temperature);
  for (int i = 0; i < n; i += 16) {
    const ExpResult e = exponential(load(z + i) - splat(max), argument, table);
    store(out + i, fused_where(e.in_range, e.power, e.factor, splat(0)));
  }
}

std::uint64_t read(const void* data, std::size_t bytes) {
  const std::uint16_t* p = static_cast<const std::uint16_t*>(data);
  Words total[4] = {splat_words(0), splat_words(0), splat_words(0), splat_words(0)};
  for (std::size_t i = 0; i + 256 <= bytes; i += 256)
    for (int k = 0; k < 4; ++k) total[k] = maximum(total[k], load_words(p + i / 2 + 32 * k));
  return static_cast<std::uint16_t>(reduce_max(maximum(maximum(total[0], total[1]), maximum(total[2], total[3]))));
}

// Sums not asked for cost time, so there is a kernel for each choice; the portable build, which is not about speed,
// forms the moment with every sum, for the shorter compilation.
template <class Type, int kRaw, int kTempered>
constexpr cpu::TileFunction choose() {
  if constexpr (kFewKernels) return tile_stats<Type, kRaw == 0 ? 0 : 2, kTempered == 0 ? 0 : 2>;
  else return tile_stats<Type, kRaw, kTempered>;
}

#define MDLM_TILES(TYPE)                                                   \
  {                                                                        \
    {choose<TYPE, 0, 0>(), choose<TYPE, 0, 1>(), choose<TYPE, 0, 2>()},    \
        {choose<TYPE, 1, 0>(), choose<TYPE, 1, 1>(), choose<TYPE, 1, 2>()}, \
        {choose<TYPE, 2, 0>(), choose<TYPE, 2, 1>(), choose<TYPE, 2, 2>()}, \
  }

constexpr ScoreKernels make_kernels() {
  return {{MDLM_TILES(Float32), MDLM_TILES(BFloat16), MDLM_TILES(Float16)},
          {widen<Float32>, widen<BFloat16>, widen<Float16>},
          weights,
          read};
}

}  // namespace
}  // namespace mdlm_fast::MDLM_ISA
