// The kernels of linear_gemm.h for bfloat16 on AMX: tile registers of 16 rows of 16 units.
//
// `tdpbf16ps` adds to each of 16 x 16 fp32 sums the products of 16 units: the 16 of even and the 16 of odd depth are summed
// apart, in ascending order, rounded to nearest even each time and with denormals flushed to zero; then the two are added,
// and that to the sum. The result for an element does not depend on its place in a tile nor on which operand is A, so
// C^T = B^T A^T has the bits of C: logits are computed transposed, because rows of the weight, as they lie in memory, are
// A's layout, and only the few rows of hidden states need packing.
#include "targets.h"

#if defined(MDLM_FAST_BUILDS_AMX)
#include <cstring>

#include "linear_gemm.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,amx-tile,amx-bf16")
// Both are raised by GCC 12 inside its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "linear_gemm_amx_tiles.h"
#include "linear_gemm_kernels.h"

namespace mdlm_fast::cpu {
namespace {

// Transposes 16-bit numbers within each 128-bit part of 8 registers.
inline void transpose8(__m512i (&r)[8]) {
  __m512i t[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm512_unpacklo_epi16(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi16(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm512_unpacklo_epi32(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi32(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi32(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi32(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm512_unpacklo_epi64(r[i], r[i + 4]);
    t[2 * i + 1] = _mm512_unpackhi_epi64(r[i], r[i + 4]);
  }
  for (int i = 0; i < 8; ++i) r[i] = t[i];
}

// Where logits go: those of `rows` hidden states from `out` on, `columns` ids, 32 or 64 of them at a time.
struct LogitSink {
  std::uint16_t* out;
  std::int64_t stride;
  const std::uint16_t* bias;  // of the first id, or null
  std::int64_t columns;

  // Logits of 32 ids from `id` on for hidden states [begin, end) of 16; row r goes to out[r]. The sums come transposed,
  // [id][hidden state], ids 0 to 15 in `low` and 16 to 31 in `high`.
  void operator()(const TileMemory& low, const TileMemory& high, std::int64_t id, std::int64_t first_row,
                  std::int64_t begin, std::int64_t end) const {
    const std::int64_t left = columns - id;
    if (left <= 0) return;
    const __mmask32 mask = left >= 32 ? 0xffffffffu : (1u << left) - 1;
    // Parts of the registers of 8 ids: hidden states 0 to 7 of the low ids, 8 to 15, and the same of the high ids.
    __m512i group[2][8];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      __m512 a = _mm512_load_ps(low.units + i * kTileUnits), b = _mm512_load_ps(high.units + i * kTileUnits);
      if (bias != nullptr) {
        a = _mm512_add_ps(a, bias_of(id + i));
        b = _mm512_add_ps(b, bias_of(id + 16 + i));
      }
      group[i / 8][i % 8] = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    }
    transpose8(group[0]);
    transpose8(group[1]);
    const __m512i early = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    const __m512i late = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) {
      if (r < begin || r >= end) continue;
      const __m512i row = _mm512_permutex2var_epi64(group[0][r % 8], r < 8 ? early : late, group[1][r % 8]);
      _mm512_mask_storeu_epi16(out + (first_row + r) * stride + id, mask, row);
    }
  }

  __m512 bias_of(std::int64_t id) const {
    const std::uint32_t bits = id < columns ? static_cast<std::uint32_t>(bias[id]) << 16 : 0;
    return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(bits)));
  }
};

void multiply_weight(const StoredMatrix& weight, const std::uint32_t* hidden_panels, std::int64_t first,
                     std::int64_t rows, const void* bias, void* out, std::int64_t out_stride) {
  const TileRegisters registers;
  const RowMatrix a{static_cast<const char*>(weight.data), weight.row_stride * 2, weight.rows, weight.depth * 2};
  const LogitSink sink{static_cast<std::uint16_t*>(out), out_stride, static_cast<const std::uint16_t*>(bias),
                       weight.rows};
  const std::int64_t size = panel_size(DType::kBFloat16, weight.depth);
  const std::int64_t steps = size / (kTileUnits * kPanelColumns), end = first + rows;
  Sums4 sums;
  for (std::int64_t id = 0; id < weight.rows; id += kWeightRows) {
    bool fetch = true;
    for (std::int64_t row = first / kPanelColumns * kPanelColumns; row < end; row += kPanelColumns) {
      const std::uint32_t* panel = hidden_panels + row / kPanelColumns * size;
      // Which of the 32 hidden states of the panel are wanted.
      const std::int64_t from = first > row ? first - row : 0, to = least(end - row, kPanelColumns);
      if (from < 16 && to > 16) {
        for (std::int64_t part = id; part < least(id + kWeightRows, weight.rows); part += 32) {
          (fetch ? square_block<true> : square_block<false>)(a.from(part), steps, panel, sums);
          sink(sums.tile[0], sums.tile[2], part, row - first, from, to);
          sink(sums.tile[1], sums.tile[3], part, row - first + 16, from - 16, to - 16);
        }
      } else {
        const std::int64_t half = from < 16 ? 0 : 16;
        (fetch ? tall_block<true> : tall_block<false>)(a.from(id), steps, panel + half, sums);
        for (int pair = 0; pair < 2; ++pair)
          sink(sums.tile[2 * pair], sums.tile[2 * pair + 1], id + 32 * pair, row - first + half, from - half, to - half);
      }
      fetch = false;
    }
  }
}

void add_tiles(const UnitMatrix& a, std::int64_t rows, std::int64_t num_units, const std::uint32_t* panel,
               std::int64_t columns, float* out, std::int64_t out_stride) {
  const TileRegisters registers;
  const Add sink{out, out_stride, columns};
  Sums4 sums;
  for (std::int64_t u = 0; u < num_units; u += kUnitsAtOnce) {
    const std::int64_t count = least(kUnitsAtOnce, num_units - u);
    const RowMatrix part{reinterpret_cast<const char*>(a.data + u), a.row_stride * 4, rows, count * 4};
    for (std::int64_t row = 0; row < rows; row += 32) {
      square_block<false>(part.from(row), (count + kTileUnits - 1) / kTileUnits, panel + u * kPanelColumns, sums);
      for (std::int64_t r = 0; r < least(32, rows - row); ++r)
        for (int half = 0; half < 2; ++half)
          sink(row + r, half, _mm512_load_ps(sums.tile[r / 16 * 2 + half].units + r % 16 * kTileUnits));
    }
  }
}

// Panels are padded with zeros to whole tiles.
void pad(std::int64_t depth, std::uint32_t* panel) {
  const std::int64_t used = units(DType::kBFloat16, depth) * kPanelColumns;
  std::memset(panel + used, 0, static_cast<std::size_t>(panel_size(DType::kBFloat16, depth) - used) * 4);
}

void pack_transposed_tiles(const void* source, std::int64_t row_stride, std::int64_t columns, std::int64_t depth,
                           std::uint32_t* panel) {
  kGemmKernelsBFloat16.pack_transposed(source, row_stride, columns, depth, panel);
  pad(depth, panel);
}

void pack_tiles(const void* source, std::int64_t row_stride, std::int64_t columns, std::int64_t depth,
                std::uint32_t* panel) {
  kGemmKernelsBFloat16.pack(source, row_stride, columns, depth, panel);
  pad(depth, panel);
}

// 16 units at a time: packed as B, then transposed. Rows beyond `columns` become zero.
UnitMatrix transpose_tiles(const void* source, std::int64_t row_stride, std::int64_t columns, std::int64_t depth,
                           std::uint32_t* memory) {
  const std::int64_t stride = panel_size(DType::kBFloat16, depth) / kPanelColumns;
  alignas(64) std::uint32_t panel[kTileUnits * kPanelColumns];
  for (std::int64_t k = 0; k < depth; k += 2 * kTileUnits) {
    pack_tiles(static_cast<const std::uint16_t*>(source) + k * row_stride, row_stride, columns,
               least(2 * kTileUnits, depth - k), panel);
    for (int half = 0; half < 2; ++half) {
      __m512i r[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) r[i] = _mm512_load_si512(panel + i * kPanelColumns + 16 * half);
      transpose16(r);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) _mm512_store_si512(memory + (16 * half + i) * stride + k / 2, r[i]);
    }
  }
  return {memory, stride, 1};
}

}  // namespace

constinit const GemmKernels kGemmKernelsAmx = {256, pack_transposed_tiles, pack_tiles, transpose_tiles,
                                               nullptr, multiply_weight, add_tiles};

}  // namespace mdlm_fast::cpu
#endif
