// An LM head in bfloat16, logits = hidden weight^T + bias, one canonical tile of the vocabulary at a time. No torch here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "linear_gemm.h"
#include "score_kernels.h"

namespace mdlm_fast::cpu {

struct LinearHead {
  const std::uint16_t* weight;  // [vocabulary, depth], row stride in elements
  std::int64_t weight_stride;
  const std::uint16_t* bias;    // [vocabulary] or null
  std::int64_t vocabulary, depth;

  std::int64_t tiles() const { return (vocabulary + kTileColumns - 1) / kTileColumns; }
  std::int64_t columns(std::int64_t tile) const;  // of a tile: 2048, fewer in the last
  std::int64_t pairs() const { return (depth + 1) / 2; }
};

// Uninitialised memory on a cache line; vectors would write all of it first.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::int64_t count) : memory_(new (std::align_val_t{64}) std::byte[count * sizeof(T)]) {}
  T* data() const { return reinterpret_cast<T*>(memory_.get()); }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte[], Free> memory_;
};

// Rows of hidden states as bf16 pairs, [rows, pairs], an odd last element paired with zero.
class HiddenRows {
 public:
  HiddenRows(std::int64_t rows, std::int64_t depth);
  void set(std::int64_t row, const void* source);  // null: zeros
  const std::uint32_t* row(std::int64_t row) const { return pairs_.data() + row * num_pairs_; }
  std::int64_t count() const { return rows_; }
  std::int64_t num_pairs() const { return num_pairs_; }
  PairMatrix from(std::int64_t first) const { return {row(first), num_pairs_, 1}; }

 private:
  std::int64_t rows_, depth_, num_pairs_;
  Buffer<std::uint32_t> pairs_;
};

// Rows computed together: their logits of a tile, 256 KB, stay in the L2 cache until they have been used, and each
// packed panel of the weight is used often enough to hide that it comes from further away.
constexpr std::int64_t kRowsAtOnce = 64;

// Computes tiles of logits; one a thread, because it owns the packed weight.
class HeadTile {
 public:
  explicit HeadTile(const LinearHead& head) : head_(head) {}

  // Logits of rows [first, first + count), count <= kRowsAtOnce: out[row][kTileColumns]. Packing and multiplying
  // alternate panel by panel, so the weight streams through the L1 cache.
  void stream(std::int64_t tile, const HiddenRows& rows, std::int64_t first, std::int64_t count, std::uint16_t* out);
  // The same for two sets of rows, which share the packed panels.
  void stream(std::int64_t tile, const HiddenRows& rows, const HiddenRows* guidance, std::int64_t first,
              std::int64_t count, std::uint16_t* out, std::uint16_t* guidance_out);

  // For more rows than that: pack the whole tile once, then multiply block after block.
  void load(std::int64_t tile);
  void multiply(const HiddenRows& rows, std::int64_t first, std::int64_t count, std::uint16_t* out) const;

 private:
  LinearHead head_;
  std::int64_t tile_ = 0;
  std::unique_ptr<Buffer<std::uint32_t>> panel_, panels_;
};

}  // namespace mdlm_fast::cpu
