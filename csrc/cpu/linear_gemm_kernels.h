// The kernels of linear_gemm.h for AVX-512, written once over a storage type:
//   Element                               the type in memory
//   kPerUnit                              elements in a unit of 32 bits
//   dot(acc, a, b)                        acc + a . b for 16 units
//   load_units(p, elements)               16 units from memory, zero beyond `elements`
//   pack_row(p, stride, columns, rows, to) one row of a panel from `rows` <= kPerUnit rows of memory
//   store(p, value, mask), widen(p, mask) one register of results, of bias
#pragma once

#include "linear_gemm.h"

namespace mdlm_fast::cpu {
namespace {

// 12 rows x 2 registers of accumulators, 2 of B, 1 broadcast of A: 27 of the 32 registers.
constexpr int kMaxRows = 12;

// Transposes a 16 x 16 block of units held one row per register.
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

// Fetches a line into L2. Its address may lie beyond the matrix, where a prefetch does no harm but a pointer would.
inline void prefetch(const void* from, std::int64_t bytes) {
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(from) + static_cast<std::uintptr_t>(bytes);
  _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T1);
}

// Columns [first, first + 16) of a panel, at most 16 units; `source` is that of column 0.
template <class Type, bool kWhole>
inline void pack_block(const typename Type::Element* source, std::int64_t row_stride, std::int64_t first,
                       std::int64_t columns, std::int64_t depth, std::uint32_t* to) {
  __m512i r[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    if (kWhole) {
      const typename Type::Element* from = source + (first + i) * row_stride;
      r[i] = _mm512_loadu_si512(from);
      // The weight is read once, panel after panel: fetch the same line of the next panel meanwhile, into L2,
      // because L1 is filled by this panel's two copies.
      prefetch(from, kPanelColumns * row_stride * static_cast<std::int64_t>(sizeof(*from)));
    } else {
      r[i] = first + i < columns ? Type::load_units(source + (first + i) * row_stride, depth) : _mm512_setzero_si512();
    }
  }
  transpose16(r);
  const std::int64_t num_units = kWhole ? 16 : (depth + Type::kPerUnit - 1) / Type::kPerUnit;
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    if (kWhole || i < num_units) _mm512_storeu_si512(to + i * kPanelColumns + first, r[i]);
  }
}

template <class Type>
void pack_transposed(const void* source_memory, std::int64_t row_stride, std::int64_t columns, std::int64_t depth,
                     std::uint32_t* panel) {
  const auto* source = static_cast<const typename Type::Element*>(source_memory);
  constexpr std::int64_t kStep = 16 * Type::kPerUnit;
  const std::int64_t whole = columns == kPanelColumns ? depth / kStep * kStep : 0;
  for (std::int64_t k = 0; k < whole; k += kStep) {
    std::uint32_t* to = panel + k / Type::kPerUnit * kPanelColumns;
    for (std::int64_t first = 0; first < kPanelColumns; first += 16)
      pack_block<Type, true>(source + k, row_stride, first, columns, kStep, to);
  }
  for (std::int64_t k = whole; k < depth; k += kStep) {
    const std::int64_t left = depth - k < kStep ? depth - k : kStep;
    std::uint32_t* to = panel + k / Type::kPerUnit * kPanelColumns;
    for (std::int64_t first = 0; first < kPanelColumns; first += 16)
      pack_block<Type, false>(source + k, row_stride, first, columns, left, to);
  }
}

template <class Type>
void pack(const void* source_memory, std::int64_t row_stride, std::int64_t columns, std::int64_t depth,
          std::uint32_t* panel) {
  const auto* source = static_cast<const typename Type::Element*>(source_memory);
  const __mmask32 mask = columns >= 32 ? 0xffffffffu : (1u << columns) - 1;
  for (std::int64_t k = 0; k < depth; k += Type::kPerUnit)
    Type::pack_row(source + k * row_stride, row_stride, mask, depth - k, panel + k / Type::kPerUnit * kPanelColumns);
}

// A panel of S, read with unit row stride, is S^T.
template <class Type>
UnitMatrix transpose(const void* source, std::int64_t row_stride, std::int64_t columns, std::int64_t depth,
                     std::uint32_t* memory) {
  pack<Type>(source, row_stride, columns, depth, memory);
  return {memory, 1, kPanelColumns};
}

inline __mmask16 half_mask(std::int64_t columns, int half) {
  const std::int64_t left = columns - 16 * half;
  return left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
}

template <class Type>
struct Store {
  typename Type::Element* out;
  std::int64_t stride;
  const typename Type::Element* bias;
  std::int64_t columns;

  inline void operator()(std::int64_t row, int half, __m512 value) const {
    const __mmask16 mask = half_mask(columns, half);
    if (mask == 0) return;
    if (bias != nullptr) value = _mm512_add_ps(value, Type::widen(bias + 16 * half, mask));
    Type::store(out + row * stride + 16 * half, value, mask);
  }
};

struct Add {
  float* out;
  std::int64_t stride;
  std::int64_t columns;

  inline void operator()(std::int64_t row, int half, __m512 value) const {
    const __mmask16 mask = half_mask(columns, half);
    if (mask == 0) return;
    float* to = out + row * stride + 16 * half;
    _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), value));
  }
};

template <class Type, int kRows, class Sink>
void multiply_rows(const UnitMatrix& a, std::int64_t first_row, std::int64_t num_units, const std::uint32_t* panel,
                   const Sink& sink) {
  __m512 acc[kRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
  const std::uint32_t* from = a.data + first_row * a.row_stride;
  for (std::int64_t u = 0; u < num_units; ++u) {
    const __m512i b0 = _mm512_loadu_si512(panel + u * kPanelColumns);
    const __m512i b1 = _mm512_loadu_si512(panel + u * kPanelColumns + 16);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const __m512i v = _mm512_set1_epi32(static_cast<int>(from[r * a.row_stride + u * a.unit_stride]));
      acc[r][0] = Type::dot(acc[r][0], v, b0);
      acc[r][1] = Type::dot(acc[r][1], v, b1);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    sink(first_row + r, 0, acc[r][0]);
    sink(first_row + r, 1, acc[r][1]);
  }
}

// Splits `rows` evenly into strips of at most 12 rows: 64 rows are 6 strips of 10 and 11, not 5 of 12 and one of 4.
template <class Type, class Sink>
void multiply_strips(const UnitMatrix& a, std::int64_t rows, std::int64_t num_units, const std::uint32_t* panel,
                     const Sink& sink) {
  const std::int64_t strips = (rows + kMaxRows - 1) / kMaxRows;
  for (std::int64_t s = 0, row = 0; s < strips; ++s) {
    const std::int64_t count = rows / strips + (s < rows % strips ? 1 : 0);
    switch (count) {
      case 1: multiply_rows<Type, 1>(a, row, num_units, panel, sink); break;
      case 2: multiply_rows<Type, 2>(a, row, num_units, panel, sink); break;
      case 3: multiply_rows<Type, 3>(a, row, num_units, panel, sink); break;
      case 4: multiply_rows<Type, 4>(a, row, num_units, panel, sink); break;
      case 5: multiply_rows<Type, 5>(a, row, num_units, panel, sink); break;
      case 6: multiply_rows<Type, 6>(a, row, num_units, panel, sink); break;
      case 7: multiply_rows<Type, 7>(a, row, num_units, panel, sink); break;
      case 8: multiply_rows<Type, 8>(a, row, num_units, panel, sink); break;
      case 9: multiply_rows<Type, 9>(a, row, num_units, panel, sink); break;
      case 10: multiply_rows<Type, 10>(a, row, num_units, panel, sink); break;
      case 11: multiply_rows<Type, 11>(a, row, num_units, panel, sink); break;
      default: multiply_rows<Type, 12>(a, row, num_units, panel, sink); break;
    }
    row += count;
  }
}

template <class Type>
void multiply(const UnitMatrix& a, std::int64_t rows, std::int64_t num_units, const std::uint32_t* panel,
              const void* bias, std::int64_t columns, void* out, std::int64_t out_stride) {
  using Element = typename Type::Element;
  const Store<Type> store{static_cast<Element*>(out), out_stride, static_cast<const Element*>(bias), columns};
  multiply_strips<Type>(a, rows, num_units, panel, store);
}

template <class Type>
void add(const UnitMatrix& a, std::int64_t rows, std::int64_t num_units, const std::uint32_t* panel,
         std::int64_t columns, float* out, std::int64_t out_stride) {
  // Short sums first: their rounding errors are small, and a block of the panel, 32 KB, stays in the L1 cache.
  for (std::int64_t u = 0; u < num_units; u += kUnitsAtOnce) {
    const UnitMatrix part{a.data + u * a.unit_stride, a.row_stride, a.unit_stride};
    multiply_strips<Type>(part, rows, num_units - u < kUnitsAtOnce ? num_units - u : kUnitsAtOnce,
                          panel + u * kPanelColumns, Add{out, out_stride, columns});
  }
}

template <class Type>
constexpr GemmKernels make_gemm_kernels() {
  return {64, pack_transposed<Type>, pack<Type>, transpose<Type>, multiply<Type>, nullptr, add<Type>};
}

}  // namespace
}  // namespace mdlm_fast::cpu
