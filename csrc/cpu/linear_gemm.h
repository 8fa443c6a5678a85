// Matrix products with fp32 accumulation, as building blocks: packed panels and a register-blocked kernel. They exist
// because the library's GEMM rounds a bf16 product (which an accumulated gradient must not be), writes all of its output
// (which the LM head never needs at once), and streams a large weight at a fraction of the memory bandwidth when there
// are few rows. No torch here.
//
// The unit of depth is 32 bits: one float, or a pair of bf16 whose two products are added in one instruction; an odd last
// bf16 is paired with zero. Every product is C[m, n] = sum over units u of A[m, u] . B[u, n], u ascending, one
// accumulator per element. So an element's bits depend on its own operands alone, never on which other rows or columns
// are computed with it: a tile computed again for one row equals the tile computed for all rows.
#pragma once

#include <cstdint>

#include "score_kernels.h"

namespace mdlm_fast::cpu {

// Columns of a packed panel: two 16-lane registers. panel[u * kPanelColumns + column].
constexpr std::int64_t kPanelColumns = 32;

constexpr std::int64_t units(DType dtype, std::int64_t depth) {
  return dtype == DType::kFloat32 ? depth : (depth + 1) / 2;
}

// A's units: that of row m and depth u is data[m * row_stride + u * unit_stride].
struct UnitMatrix {
  const std::uint32_t* data;
  std::int64_t row_stride;
  std::int64_t unit_stride;
};

// The kernels for one storage type. Strides are in elements; missing columns of a panel are zero.
struct GemmKernels {
  // B = S^T: S is [columns <= 32, depth]. The weight is expected next in memory and is fetched ahead.
  void (*pack_transposed)(const void* source, std::int64_t row_stride, std::int64_t columns, std::int64_t depth,
                          std::uint32_t* panel);
  // B = S: S is [depth, columns <= 32].
  void (*pack)(const void* source, std::int64_t row_stride, std::int64_t columns, std::int64_t depth,
               std::uint32_t* panel);
  // out[m, 0..columns) = A B + bias, rounded once to the storage type. bias [columns] may be null.
  void (*multiply)(const UnitMatrix& a, std::int64_t rows, std::int64_t num_units, const std::uint32_t* panel,
                   const void* bias, std::int64_t columns, void* out, std::int64_t out_stride);
  // out[m, 0..columns) += A B in fp32, 256 units at a time.
  void (*add)(const UnitMatrix& a, std::int64_t rows, std::int64_t num_units, const std::uint32_t* panel,
              std::int64_t columns, float* out, std::int64_t out_stride);
};

// The kernels for a storage type, or null: float32 needs AVX-512, bfloat16 AVX512_BF16, and MDLM_FAST_CPU_ISA must not
// forbid AVX-512.
const GemmKernels* gemm_kernels(DType dtype);

#if defined(__x86_64__)
extern const GemmKernels kGemmKernelsFloat32;
extern const GemmKernels kGemmKernelsBFloat16;
#endif

}  // namespace mdlm_fast::cpu
