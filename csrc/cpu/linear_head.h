// An LM head, logits = hidden weight^T + bias, one canonical tile of the vocabulary at a time. No torch here.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <new>

#include "linear_gemm.h"
#include "score_kernels.h"

namespace mdlm_fast::cpu {

// A head whose dtype has gemm_kernels().
struct LinearHead {
  DType dtype;                 // of weight, bias, hidden states and logits
  const void* weight;          // [vocabulary, depth], row stride in elements
  std::int64_t weight_stride;
  const void* bias;            // [vocabulary] or null
  std::int64_t vocabulary, depth;

  std::int64_t element() const { return static_cast<std::int64_t>(size_of(dtype)); }
  std::int64_t tiles() const { return (vocabulary + kTileColumns - 1) / kTileColumns; }
  std::int64_t columns(std::int64_t tile) const;  // of a tile: 2048, fewer in the last
  std::int64_t rows_at_once() const { return gemm_kernels(dtype)->rows_at_once; }
  // Weight from one row and column on, as bytes.
  const char* weight_at(std::int64_t id, std::int64_t column) const {
    return static_cast<const char*>(weight) + (id * weight_stride + column) * element();
  }
};

// Uninitialised memory on a cache line; vectors would write all of it first.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::int64_t count)
      : memory_(static_cast<T*>(::operator new[](static_cast<std::size_t>(count) * sizeof(T), std::align_val_t{64}))) {}
  T* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  std::unique_ptr<T[], Free> memory_;
};

// Rows of hidden states as units of 32 bits, [rows, units], an odd last bf16 paired with zero.
class HiddenRows {
 public:
  // Row n is copied from source(n).
  using Source = std::function<const void*(std::int64_t)>;
  HiddenRows(DType dtype, std::int64_t rows, std::int64_t depth, const Source& source);
  std::int64_t num_units() const { return units_; }
  UnitMatrix from(std::int64_t first) const { return {data_.data() + first * units_, units_, 1}; }
  // Transposed panels of 32 rows, where the kernels multiply the weight as it lies in memory.
  const std::uint32_t* panels() const { return panels_.data(); }

 private:
  std::int64_t units_;
  Buffer<std::uint32_t> data_, panels_;
};

// Computes tiles of logits; one a thread, because it owns the packed weight.
class HeadTile {
 public:
  explicit HeadTile(const LinearHead& head) : head_(head), kernels_(*gemm_kernels(head.dtype)) {}

  // Logits of rows [first, first + count), count <= rows_at_once(): out[row][kTileColumns]; and of a second set of rows
  // unless it is null. Both sets take turns within a tile, so the weight streams through the caches once.
  void stream(std::int64_t tile, const HiddenRows& rows, const HiddenRows* guidance, std::int64_t first,
              std::int64_t count, void* out, void* guidance_out);

  // For more rows than that: pack the whole tile once (where it is packed), then multiply block after block.
  void load(std::int64_t tile);
  void multiply(const HiddenRows& rows, std::int64_t first, std::int64_t count, void* out) const;

 private:
  std::int64_t weight_panel_size() const { return panel_size(head_.dtype, head_.depth); }
  void pack(std::int64_t tile, std::int64_t panel_index, std::uint32_t* panel) const;
  void multiply_panel(std::int64_t tile, std::int64_t panel_index, const std::uint32_t* panel, const HiddenRows& rows,
                      std::int64_t first, std::int64_t count, void* out) const;
  // Ids [from, from + ids) of a tile, without packing.
  void multiply_weight(std::int64_t tile, std::int64_t from, std::int64_t ids, const HiddenRows& rows,
                       std::int64_t first, std::int64_t count, void* out) const;
  const void* bias_at(std::int64_t id) const {
    return head_.bias == nullptr ? nullptr : static_cast<const char*>(head_.bias) + id * head_.element();
  }

  LinearHead head_;
  const GemmKernels& kernels_;
  std::int64_t tile_ = 0;
  std::unique_ptr<Buffer<std::uint32_t>> panel_, panels_;
};

}  // namespace mdlm_fast::cpu
