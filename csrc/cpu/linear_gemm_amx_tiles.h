// The tile registers of AMX, and the two blocks of products that fill them. For linear_gemm_amx.cpp, after its target
// pragma and the intrinsics.
#pragma once

#include "linear_gemm_kernels.h"

namespace mdlm_fast::cpu {
namespace {

constexpr std::int64_t kTileRows = 16, kTileBytes = 64;
// Rows of the weight that share a pass over the hidden states.
constexpr std::int64_t kWeightRows = 64;

// Keeps what is written before it from moving below it, and what is written after it from moving above: GCC 12 does not
// know that a tile load reads memory.
inline void order_memory() { asm volatile("" ::: "memory"); }

// Configures this thread's eight tile registers, all 16 x 64 bytes, and gives their state up again: a thread that holds
// it pays for it at every context switch.
class TileRegisters {
 public:
  TileRegisters() {
    struct alignas(64) Configuration {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static constexpr Configuration kConfiguration;
    _tile_loadconfig(&kConfiguration);
    order_memory();  // operands that were packed before
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

// std::min would be compiled here for AVX-512 and might be linked into code that runs without it.
constexpr std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// A matrix of bf16 that is read as A, and where it ends.
struct RowMatrix {
  const char* data;
  std::int64_t row_bytes;
  std::int64_t rows, bytes;  // bytes of a row that count

  RowMatrix from(std::int64_t row) const { return {data + row * row_bytes, row_bytes, rows - row, bytes}; }
};

// Where a tile of A is loaded from: the matrix itself, or a copy with zeros where the matrix ends.
struct TileSource {
  const void* data;
  std::int64_t stride;
};

struct alignas(64) TileMemory {
  std::uint32_t units[kTileRows * kTileUnits];
};

inline TileSource tile_source(const RowMatrix& a, std::int64_t first_row, std::int64_t step, TileMemory& copy) {
  const std::int64_t byte = step * kTileBytes;
  if (first_row + kTileRows <= a.rows && byte + kTileBytes <= a.bytes) [[likely]]
    return {a.data + first_row * a.row_bytes + byte, a.row_bytes};
  const std::int64_t elements = least(kTileBytes, a.bytes - byte) / 2;
  const __mmask32 mask = elements >= 32 ? 0xffffffffu : (1u << elements) - 1;
  order_memory();  // the previous step may still have to load the same copy
  for (std::int64_t r = 0; r < kTileRows; ++r) {
    const std::int64_t row = first_row + r;
    _mm512_store_si512(copy.units + r * kTileUnits,
                       row < a.rows ? _mm512_maskz_loadu_epi16(mask, a.data + row * a.row_bytes + byte)
                                    : _mm512_setzero_si512());
  }
  order_memory();
  return {copy.units, kTileBytes};
}

// Lines of the rows that come 64 rows after this tile, into L2.
inline void prefetch_tile(const RowMatrix& a, std::int64_t first_row, std::int64_t step) {
#pragma GCC unroll 16
  for (std::int64_t r = 0; r < kTileRows; ++r)
    prefetch(a.data, (first_row + kWeightRows + r) * a.row_bytes + step * kTileBytes);
}

// The four sums of a block of 32 x 32, [row half][column half], or of 64 x 16, [row quarter].
struct Sums4 {
  TileMemory tile[4];
};

inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

inline void store_sums(Sums4& sums) {
  _tile_stored(0, sums.tile[0].units, kTileBytes);
  _tile_stored(1, sums.tile[1].units, kTileBytes);
  _tile_stored(2, sums.tile[2].units, kTileBytes);
  _tile_stored(3, sums.tile[3].units, kTileBytes);
}

// 32 rows of A by a panel of 32 columns.
template <bool kPrefetch>
void square_block(const RowMatrix& a, std::int64_t steps, const std::uint32_t* panel, Sums4& sums) {
  TileMemory copies[2];
  zero_sums();
  for (std::int64_t k = 0; k < steps; ++k) {
    const TileSource upper = tile_source(a, 0, k, copies[0]), lower = tile_source(a, 16, k, copies[1]);
    const std::uint32_t* b = panel + k * kTileUnits * kPanelColumns;
    _tile_loadd(4, upper.data, upper.stride);
    _tile_loadd(6, b, kPanelColumns * 4);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + 16, kPanelColumns * 4);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, lower.data, lower.stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    if (kPrefetch) {
      prefetch_tile(a, 0, k);
      prefetch_tile(a, 16, k);
    }
  }
  store_sums(sums);
}

// 64 rows of A by 16 columns of a panel.
template <bool kPrefetch>
void tall_block(const RowMatrix& a, std::int64_t steps, const std::uint32_t* panel, Sums4& sums) {
  TileMemory copies[4];
  zero_sums();
  for (std::int64_t k = 0; k < steps; ++k) {
    TileSource source[4];
    for (int i = 0; i < 4; ++i) source[i] = tile_source(a, i * kTileRows, k, copies[i]);
    _tile_loadd(4, panel + k * kTileUnits * kPanelColumns, kPanelColumns * 4);
    _tile_loadd(5, source[0].data, source[0].stride);
    _tile_dpbf16ps(0, 5, 4);
    _tile_loadd(6, source[1].data, source[1].stride);
    _tile_dpbf16ps(1, 6, 4);
    _tile_loadd(7, source[2].data, source[2].stride);
    _tile_dpbf16ps(2, 7, 4);
    _tile_loadd(5, source[3].data, source[3].stride);
    _tile_dpbf16ps(3, 5, 4);
    if (kPrefetch)
      for (int i = 0; i < 4; ++i) prefetch_tile(a, i * kTileRows, k);
  }
  store_sums(sums);
}

}  // namespace
}  // namespace mdlm_fast::cpu
