// What the vector kernels of one instruction set offer to the rest of the scoring code, and how one is chosen.
#pragma once

#include <cstddef>
#include <cstdint>

#include "targets.h"

namespace mdlm_fast::cpu {

constexpr int kTileColumns = 2048;   // canonical tiles: columns [2048 j, 2048 j + 2048) of the global vocabulary
constexpr int kBlockColumns = 64;    // a column's lane is its index mod 64; tiles given to kernels are whole blocks

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };
constexpr std::size_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// One tile: `argmax` is relative to the tile, the first of equals, -1 when every entry is -inf.
// Sums are over all columns but argmax. `max` is NaN when any entry is NaN, and +inf when one is +inf and none NaN;
// nothing else then has a meaning.
struct TileStats {
  float max;
  float second;            // the largest entry but argmax; -inf where there is none or it was not wanted
  std::int32_t argmax;
  float sum;               // sum of exp(z - max)
  float moment;            // sum of (z - max) exp(z - max)
  float tempered_sum;      // the same for exp((z - max) / T)
  float tempered_moment;   // of ((z - max) / T) exp((z - max) / T)
};

// Which sums a tile kernel forms. The maximum is always found; sums not asked for are left alone.
enum class Sums : int { kNone = 0, kSum = 1, kMoment = 2 };

// `n` columns, a multiple of 64, at most 2048. `inverse_temperature` finite and positive. `second` is found only where
// max > `second_above`: -inf for always, +inf for never, or the largest entry of earlier tiles, as a row's second
// largest entry is either the largest of some tile or the second of the tile that has the row's largest.
using TileFunction = void (*)(const void* tile, int n, float inverse_temperature, float second_above, TileStats* out);

struct ScoreKernels {
  TileFunction tile[3][3][3];  // [dtype][raw sums][tempered sums]
  // A tile as floats, in column order; any n.
  void (*widen[3])(const void* tile, int n, float* out);
  // exp((z - max) * inverse_temperature), 0 where that is below exp(-87); n a multiple of 16.
  void (*weights)(const float* z, int n, float max, float inverse_temperature, float* out);
  // Loads every byte once and does next to nothing else: the floor that benchmarks compare with.
  std::uint64_t (*read)(const void* data, std::size_t bytes);
};

extern const ScoreKernels kScoreKernelsPortable;
#if defined(MDLM_FAST_BUILDS_AVX)
extern const ScoreKernels kScoreKernelsAvx2;
extern const ScoreKernels kScoreKernelsAvx512;
#endif

// The set that goes with instruction_set().
const ScoreKernels& score_kernels();

}  // namespace mdlm_fast::cpu
