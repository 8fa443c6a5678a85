// Where scoring kernels find the tiles of a row: plain logits, or logits with guidance.
#pragma once

#include "score_partials.h"
#include "tile.cuh"

namespace mdlm_fast::cuda {

// kAligned and kUnaligned read the rows where they lie, kEither finds out which; kGuided combines two rows into fp32.
enum class Reading { kAligned, kUnaligned, kEither, kGuided };

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

__device__ __forceinline__ int columns_of_tile(int width, int tile) {
  return min(width - tile * kTileColumns, kTileColumns);
}

// One row of the source, as it is stored.
template <class Stored, Reading kReading>
struct RowReader {
  using Element = Stored;
  using Registers = Tile<Stored>;

  const Stored* logits;  // [V]
  int width;
  bool aligned;

  __device__ __forceinline__ RowReader(const ScoreSource& source, unsigned, std::int32_t row)
      : logits(row_of<Stored>(source.logits, row)), width(source.width), aligned(source.logits.aligned) {}

  __device__ __forceinline__ int count(int tile) const { return columns_of_tile(width, tile); }

  __device__ __forceinline__ void load(Registers& registers, int tile, int lane) const {
    if (kReading == Reading::kAligned || (kReading == Reading::kEither && aligned))
      load_tile(registers, logits + tile * kTileColumns, count(tile), lane);
    else
      load_unaligned_tile(registers, logits + tile * kTileColumns, count(tile), lane);
  }

  __device__ __forceinline__ float value(int column) const { return widen(load_constant(logits + column)); }
};

// The type of elements that is known at run time alone.
struct AnyElement {};

// One row after guidance. All types share the code, as it holds fp32 however they are stored.
template <>
struct RowReader<AnyElement, Reading::kGuided> {
  using Element = float;
  using Registers = Tile<float>;

  const ScoreSource& source;
  std::int32_t row, guidance_row;

  __device__ __forceinline__ RowReader(const ScoreSource& from, unsigned slot, std::int32_t r)
      : source(from), row(r), guidance_row(load_uniform(from.guidance_rows + slot)) {}

  // Calls body(logits, guidance) with the two rows, [V] each, as what they are.
  template <class Body>
  __device__ __forceinline__ void with_rows(Body&& body) const {
    switch (source.type) {
      case ElementType::kFloat32: return call<float>(body);
      case ElementType::kBFloat16: return call<bfloat16>(body);
      default: return call<float16>(body);
    }
  }

  __device__ __forceinline__ int count(int tile) const { return columns_of_tile(source.width, tile); }

  __device__ __forceinline__ void load(Registers& registers, int tile, int lane) const {
    const int first = tile * kTileColumns;
    with_rows([&](const auto* logits, const auto* guidance) {
      load_guided_tile(registers, logits + first, guidance + first, weights(), count(tile), lane);
    });
  }

  __device__ __forceinline__ float value(int column) const {
    float z = 0.0f;
    with_rows([&](const auto* logits, const auto* guidance) {
      z = weights()(widen(load_constant(logits + column)), widen(load_constant(guidance + column)));
    });
    return z;
  }

 private:
  __device__ __forceinline__ Guidance weights() const { return {source.own_scale, source.guidance_scale}; }

  template <class Stored, class Body>
  __device__ __forceinline__ void call(Body&& body) const {
    body(row_of<Stored>(source.logits, row), row_of<Stored>(source.guidance, guidance_row));
  }
};

}  // namespace mdlm_fast::cuda
