// Where scoring kernels find the tiles of a row: plain logits, or logits with guidance.
#pragma once

#include "score_partials.h"
#include "tile.cuh"

namespace mdlm_fast::cuda {

// kAligned and kUnaligned read the rows where they lie, kEither finds out which; kGuided combines two rows into fp32.
enum class Reading { kAligned, kUnaligned, kEither, kGuided };

template <class Stored, Reading kReading>
using RegisterType = std::conditional_t<kReading == Reading::kGuided, float, Stored>;

template <class Stored>
__device__ __forceinline__ const Stored* row_of(const LogitRows& rows, std::int32_t r) {
  const Stored* data = static_cast<const Stored*>(rows.data);
  if (r < rows.rows_per_batch) return data + r * rows.row_stride;  // the usual case, without a division
  const unsigned batch = static_cast<unsigned>(r) / static_cast<unsigned>(rows.rows_per_batch);
  return data + batch * rows.batch_stride + (r - static_cast<int>(batch) * rows.rows_per_batch) * rows.row_stride;
}

__device__ __forceinline__ Exclusion exclusion_of(const ScoreSource& source) {
  return {source.forbidden, source.num_forbidden, source.vocab_limit};
}

// Greedy sequences (temperature 0) report and filter the distribution at temperature 1. A temperature below 1e-30 is as
// good as 0, and its inverse still finite.
__device__ __forceinline__ float unit_temperature(float temperature) {
  return temperature > 0.0f ? fmaxf(temperature, 1e-30f) : 1.0f;
}

// One row of the source.
template <class Stored, Reading kReading>
struct RowReader {
  using Element = RegisterType<Stored, kReading>;
  using Registers = Tile<Element>;

  const Stored* logits;    // [V]
  const Stored* guidance;  // [V], where kGuided
  float scale;
  int width;
  bool aligned;

  __device__ __forceinline__ RowReader(const ScoreSource& source, unsigned slot, std::int32_t row)
      : logits(row_of<Stored>(source.logits, row)),
        guidance(nullptr),
        scale(source.guidance_scale),
        width(source.width),
        aligned(source.logits.aligned) {
    if constexpr (kReading == Reading::kGuided)
      guidance = row_of<Stored>(source.guidance, load_constant(source.guidance_rows + slot));
  }

  __device__ __forceinline__ int count(int tile) const { return min(width - tile * kTileColumns, kTileColumns); }

  __device__ __forceinline__ void load(Registers& registers, int tile, int lane) const {
    const int first = tile * kTileColumns;
    if constexpr (kReading == Reading::kGuided)
      load_guided_tile(registers, logits + first, guidance + first, scale, count(tile), lane);
    else if (kReading == Reading::kAligned || (kReading == Reading::kEither && aligned))
      load_tile(registers, logits + first, count(tile), lane);
    else
      load_unaligned_tile(registers, logits + first, count(tile), lane);
  }

  __device__ __forceinline__ float value(int column) const {
    const float z = widen(load_constant(logits + column));
    if constexpr (kReading == Reading::kGuided) return guided(z, widen(load_constant(guidance + column)), scale);
    return z;
  }
};

}  // namespace mdlm_fast::cuda
