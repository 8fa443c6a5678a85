// Matrix products with fp32 accumulation, as building blocks: packed panels and a register-blocked kernel. They exist
// because the library's GEMM rounds a bf16 product (which an accumulated gradient must not be), writes all of its output
// (which the LM head never needs at once), and streams a large weight at a fraction of the memory bandwidth when there
// are few rows. No torch here.
//
// The unit of depth is 32 bits: one float, or a pair of bf16; an odd last bf16 is paired with zero. Every product is
// C[m, n] = sum over units u of A[m, u] . B[u, n], u ascending, one accumulator per element (the tile registers of AMX
// add 16 units first, counted from the start of the depth). So an element's bits depend on its own operands alone, never
// on which other rows or columns are computed with it: a tile computed again for one row equals the tile computed for
// all rows.
#pragma once

#include <cstdint>

#include "score_kernels.h"

namespace mdlm_fast::cpu {

// Columns of a packed panel: two 16-lane registers. panel[u * kPanelColumns + column].
constexpr std::int64_t kPanelColumns = 32;
// Panels are padded to a multiple of this many units, the depth of a tile register.
constexpr std::int64_t kTileUnits = 16;

constexpr std::int64_t units(DType dtype, std::int64_t depth) {
  return dtype == DType::kFloat32 ? depth : (depth + 1) / 2;
}

constexpr std::int64_t panel_size(DType dtype, std::int64_t depth) {
  return (units(dtype, depth) + kTileUnits - 1) / kTileUnits * kTileUnits * kPanelColumns;
}

// A's units: that of row m and depth u is data[m * row_stride + u * unit_stride].
struct UnitMatrix {
  const std::uint32_t* data;
  std::int64_t row_stride;
  std::int64_t unit_stride;
};

// Rows of a matrix in memory, [rows, depth] in the storage type; the stride is in elements.
struct StoredMatrix {
  const void* data;
  std::int64_t row_stride;
  std::int64_t rows, depth;
};

// The kernels for one storage type. Strides are in elements; missing columns of a panel are zero.
struct GemmKernels {
  // Rows of hidden states whose logits of a tile are best computed together. The logits stay in the L2 cache until they
  // have been used, and the weight is used often enough to hide that it comes from further away.
  std::int64_t rows_at_once;

  // B = S^T: S is [columns <= 32, depth]. The weight is expected next in memory and is fetched ahead.
  void (*pack_transposed)(const void* source, std::int64_t row_stride, std::int64_t columns, std::int64_t depth,
                          std::uint32_t* panel);
  // B = S: S is [depth, columns <= 32].
  void (*pack)(const void* source, std::int64_t row_stride, std::int64_t columns, std::int64_t depth,
               std::uint32_t* panel);
  // A = S^T: S is [depth, columns <= 32]. A lies in `memory`, which has the size of a panel.
  UnitMatrix (*transpose)(const void* source, std::int64_t row_stride, std::int64_t columns, std::int64_t depth,
                          std::uint32_t* memory);

  // Logits are computed by one of the next two; the other is null.
  // out[m, 0..columns) = A B + bias, rounded once to the storage type. bias [columns] may be null.
  void (*multiply)(const UnitMatrix& a, std::int64_t rows, std::int64_t num_units, const std::uint32_t* panel,
                   const void* bias, std::int64_t columns, void* out, std::int64_t out_stride);
  // out[m, 0..weight.rows) = X weight^T + bias for a weight that need not be packed: its rows are read as they lie in
  // memory, and those that follow are fetched ahead. X is rows [first, first + rows) of the transposed panels of hidden
  // states, 32 rows each.
  void (*multiply_weight)(const StoredMatrix& weight, const std::uint32_t* hidden_panels, std::int64_t first,
                          std::int64_t rows, const void* bias, void* out, std::int64_t out_stride);

  // out[m, 0..columns) += A B in fp32, 256 units at a time.
  void (*add)(const UnitMatrix& a, std::int64_t rows, std::int64_t num_units, const std::uint32_t* panel,
              std::int64_t columns, float* out, std::int64_t out_stride);
};

// Units of one `add`.
constexpr std::int64_t kUnitsAtOnce = 256;

// The kernels for a storage type, or null: float32 needs AVX-512, bfloat16 AVX512_BF16 or AMX, and MDLM_FAST_CPU_ISA must
// not forbid them.
const GemmKernels* gemm_kernels(DType dtype);

#if defined(MDLM_FAST_BUILDS_AVX)
extern const GemmKernels kGemmKernelsFloat32;
extern const GemmKernels kGemmKernelsBFloat16;
#endif
#if defined(MDLM_FAST_BUILDS_AMX)
extern const GemmKernels kGemmKernelsAmx;
#endif

}  // namespace mdlm_fast::cpu
