// Matrix products in bfloat16 with fp32 accumulation, as building blocks: packed panels and a register-blocked
// kernel. They exist because the library GEMM writes bf16 (which an accumulated gradient must not be rounded to),
// writes all of the output (which the LM head never needs at once), and streams a large weight at a fraction of the
// memory bandwidth when there are few rows. No torch here.
//
// Every product is C[m, n] = sum over pairs p of A[m, 2p] B[2p, n] + A[m, 2p+1] B[2p+1, n]: p ascending, one
// accumulator per element. An element's bits depend on its own operands alone, never on which other rows or columns
// are computed with it, so a tile computed again for one row equals the tile computed for all rows.
#pragma once

#include <cstdint>

namespace mdlm_fast::cpu {

// Columns of a packed panel: two 16-lane registers.
constexpr int64_t kPanelColumns = 32;

// True when the processor has AVX512_BF16 and MDLM_FAST_CPU_ISA does not forbid AVX-512.
bool has_bf16_gemm();

// Elements (uint32, one bf16 pair each) of a packed panel over `depth` summands.
inline int64_t panel_size(int64_t depth) { return (depth + 1) / 2 * kPanelColumns; }

// Packs B = S^T for one panel: S is [columns <= 32, depth], row stride in elements; panel[p][column] = the pair
// (S[column, 2p], S[column, 2p+1]). Missing columns and an odd last summand are zero.
void pack_panel_transposed(const uint16_t* source, int64_t row_stride, int64_t columns, int64_t depth,
                           uint32_t* panel);

// Packs B = S for one panel: S is [depth, columns <= 32], row stride in elements; panel[p][column] = the pair
// (S[2p, column], S[2p+1, column]).
void pack_panel(const uint16_t* source, int64_t row_stride, int64_t columns, int64_t depth, uint32_t* panel);

// A's pairs: the pair of row m and summands (2p, 2p+1) is pairs[m * row_stride + p * pair_stride].
struct PairMatrix {
  const uint32_t* pairs;
  int64_t row_stride;
  int64_t pair_stride;
};

// out[m, 0..columns) = bf16(A B + bias): one rounding, to nearest even. bias (bf16 [columns]) may be null.
void multiply_panel_bf16(const PairMatrix& a, int64_t rows, int64_t num_pairs, const uint32_t* panel,
                         const uint16_t* bias, int64_t columns, uint16_t* out, int64_t out_stride);

// out[m, 0..columns) += A B in fp32.
void add_panel_f32(const PairMatrix& a, int64_t rows, int64_t num_pairs, const uint32_t* panel, int64_t columns,
                   float* out, int64_t out_stride);

}  // namespace mdlm_fast::cpu
