// The bfloat16 panels of linear_gemm.h on AVX512_BF16. Called only where has_bf16_gemm() is true.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "linear_gemm.h"

// Both are raised by GCC 12 inside its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")
#include <immintrin.h>

namespace mdlm_fast::cpu {
namespace {

// 12 rows x 2 registers of accumulators, 2 of B, 1 broadcast of A: 27 of the 32 registers.
constexpr int kMaxRows = 12;

// Transposes a 16 x 16 block of 32-bit elements held one row per register.
inline void transpose16(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

struct StoreBf16 {
  uint16_t* out;
  int64_t stride;
  const uint16_t* bias;
  int64_t columns;

  inline void operator()(int64_t row, int half, __m512 value) const {
    const int64_t left = columns - 16 * half;
    if (left <= 0) return;
    const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
    if (bias != nullptr) {
      const __m256i b = _mm256_maskz_loadu_epi16(mask, bias + 16 * half);
      value = _mm512_add_ps(value, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16)));
    }
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(value);
    _mm256_mask_storeu_epi16(out + row * stride + 16 * half, mask, rounded);
  }
};

struct AddF32 {
  float* out;
  int64_t stride;
  int64_t columns;

  inline void operator()(int64_t row, int half, __m512 value) const {
    const int64_t left = columns - 16 * half;
    if (left <= 0) return;
    const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
    float* to = out + row * stride + 16 * half;
    _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), value));
  }
};

template <int kRows, class Store>
void multiply_rows(const PairMatrix& a, int64_t first_row, int64_t num_pairs, const uint32_t* panel,
                   const Store& store) {
  __m512 acc[kRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
  const uint32_t* pairs = a.pairs + first_row * a.row_stride;
  for (int64_t p = 0; p < num_pairs; ++p) {
    const __m512bh b0 = (__m512bh)_mm512_loadu_si512(panel + p * kPanelColumns);
    const __m512bh b1 = (__m512bh)_mm512_loadu_si512(panel + p * kPanelColumns + 16);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const __m512bh v = (__m512bh)_mm512_set1_epi32(static_cast<int>(pairs[r * a.row_stride + p * a.pair_stride]));
      acc[r][0] = _mm512_dpbf16_ps(acc[r][0], v, b0);
      acc[r][1] = _mm512_dpbf16_ps(acc[r][1], v, b1);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    store(first_row + r, 0, acc[r][0]);
    store(first_row + r, 1, acc[r][1]);
  }
}

// Splits `rows` evenly into strips of at most 12 rows: 64 rows are 6 strips of 10 and 11, not 5 of 12 and one of 4.
template <class Store>
void multiply(const PairMatrix& a, int64_t rows, int64_t num_pairs, const uint32_t* panel, const Store& store) {
  const int64_t strips = (rows + kMaxRows - 1) / kMaxRows;
  for (int64_t s = 0, row = 0; s < strips; ++s) {
    const int64_t count = rows / strips + (s < rows % strips ? 1 : 0);
    switch (count) {
      case 1: multiply_rows<1>(a, row, num_pairs, panel, store); break;
      case 2: multiply_rows<2>(a, row, num_pairs, panel, store); break;
      case 3: multiply_rows<3>(a, row, num_pairs, panel, store); break;
      case 4: multiply_rows<4>(a, row, num_pairs, panel, store); break;
      case 5: multiply_rows<5>(a, row, num_pairs, panel, store); break;
      case 6: multiply_rows<6>(a, row, num_pairs, panel, store); break;
      case 7: multiply_rows<7>(a, row, num_pairs, panel, store); break;
      case 8: multiply_rows<8>(a, row, num_pairs, panel, store); break;
      case 9: multiply_rows<9>(a, row, num_pairs, panel, store); break;
      case 10: multiply_rows<10>(a, row, num_pairs, panel, store); break;
      case 11: multiply_rows<11>(a, row, num_pairs, panel, store); break;
      default: multiply_rows<12>(a, row, num_pairs, panel, store); break;
    }
    row += count;
  }
}

// One block of pack_panel_transposed: 16 columns of the panel, at most 32 summands.
template <bool kWhole>
inline void pack_block(const uint16_t* source, int64_t row_stride, int64_t columns, int64_t depth, uint32_t* to) {
  __m512i r[16];
  const __mmask32 mask = depth >= 32 ? 0xffffffffu : (1u << depth) - 1;
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    const uint16_t* from = source + i * row_stride;
    if (kWhole) {
      r[i] = _mm512_loadu_si512(from);
      // The weight is read once, panel after panel: fetch the same line of the next panel meanwhile, into L2,
      // because L1 is filled by this panel's two copies.
      _mm_prefetch(reinterpret_cast<const char*>(from + kPanelColumns * row_stride), _MM_HINT_T1);
    } else {
      r[i] = i < columns ? _mm512_maskz_loadu_epi16(mask, from) : _mm512_setzero_si512();
    }
  }
  transpose16(r);
  const int64_t pairs = kWhole ? 16 : (depth + 1) / 2;
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    if (kWhole || i < pairs) _mm512_storeu_si512(to + i * kPanelColumns, r[i]);
  }
}

}  // namespace

bool has_bf16_gemm() {
  static const bool value = [] {
    const char* isa = std::getenv("MDLM_FAST_CPU_ISA");
    if (isa != nullptr && *isa != '\0' && std::strcmp(isa, "avx512") != 0) return false;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bf16");
  }();
  return value;
}

void pack_panel_transposed(const uint16_t* source, int64_t row_stride, int64_t columns, int64_t depth,
                           uint32_t* panel) {
  const int64_t whole = columns == kPanelColumns ? depth / 32 * 32 : 0;
  for (int64_t k = 0; k < whole; k += 32) {
    pack_block<true>(source + k, row_stride, 16, 32, panel + k / 2 * kPanelColumns);
    pack_block<true>(source + k + 16 * row_stride, row_stride, 16, 32, panel + k / 2 * kPanelColumns + 16);
  }
  for (int64_t k = whole; k < depth; k += 32) {
    const int64_t left = std::min<int64_t>(depth - k, 32);
    uint32_t* to = panel + k / 2 * kPanelColumns;
    pack_block<false>(source + k, row_stride, std::min<int64_t>(columns, 16), left, to);
    pack_block<false>(source + k + 16 * row_stride, row_stride, std::max<int64_t>(columns - 16, 0), left, to + 16);
  }
}

void pack_panel(const uint16_t* source, int64_t row_stride, int64_t columns, int64_t depth, uint32_t* panel) {
  const __mmask32 mask = columns >= 32 ? 0xffffffffu : (1u << columns) - 1;
  // unpack works within 128-bit parts: these permutations put its halves back in column order.
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  for (int64_t k = 0; k < depth; k += 2) {
    const __m512i even = _mm512_maskz_loadu_epi16(mask, source + k * row_stride);
    const __m512i odd =
        k + 1 < depth ? _mm512_maskz_loadu_epi16(mask, source + (k + 1) * row_stride) : _mm512_setzero_si512();
    const __m512i a = _mm512_unpacklo_epi16(even, odd);
    const __m512i b = _mm512_unpackhi_epi16(even, odd);
    uint32_t* to = panel + k / 2 * kPanelColumns;
    _mm512_storeu_si512(to, _mm512_permutex2var_epi64(a, low, b));
    _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi64(a, high, b));
  }
}

void multiply_panel_bf16(const PairMatrix& a, int64_t rows, int64_t num_pairs, const uint32_t* panel,
                         const uint16_t* bias, int64_t columns, uint16_t* out, int64_t out_stride) {
  multiply(a, rows, num_pairs, panel, StoreBf16{out, out_stride, bias, columns});
}

void add_panel_f32(const PairMatrix& a, int64_t rows, int64_t num_pairs, const uint32_t* panel, int64_t columns,
                   float* out, int64_t out_stride) {
  multiply(a, rows, num_pairs, panel, AddF32{out, out_stride, columns});
}

}  // namespace mdlm_fast::cpu
