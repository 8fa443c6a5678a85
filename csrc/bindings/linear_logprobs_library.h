// linear_token_logprobs through the library's GEMM, a chunk of the vocabulary at a time.
#pragma once

#include "../cpu/linear_logprobs.h"
#include "../cpu/token_logprobs_kernels.h"
#include "linear_library.h"
#include "logprob_arguments.h"

namespace mdlm_fast {

class LibraryHead {
 public:
  // `live` are the places in `rows` of the scores that are not padding.
  LibraryHead(const Tensor& like, const Tensor& weight, const OptionalTensor& bias, const cpu::LogitRows& hidden,
              const int32_t* rows, const std::vector<int64_t>& live);

  // As linear_logprob_tiles and linear_logprob_gradients; `rows.hidden` is not read. `grad_weight` is out.grad_weight.
  void logprob_tiles(const cpu::LogprobRows& rows, bool need_entropy, cpu::TileStats* stats, float* target_logit);
  void gradients(const cpu::LogprobRows& rows, const cpu::RowGradient* gradients, bool need_entropy,
                 const cpu::LinearGradients& out, const Tensor& grad_weight);

 private:
  struct Chunk {
    int64_t first_tile, tiles, first_id, columns;
  };
  int64_t num_chunks() const { return (tiles_ + tiles_at_once_ - 1) / tiles_at_once_; }
  Chunk chunk(int64_t index) const;
  const void* compute(const Chunk& chunk);  // logits of the chunk, [N, chunk.columns], row stride columns_at_once()
  int64_t columns_at_once() const { return tiles_at_once_ * cpu::kTileColumns; }
  char* row(int64_t n) const;
  void add_hidden(const Chunk& chunk, const Tensor& grad_logits, float* grad_hidden);
  void write_weight(const Chunk& chunk, const Tensor& grad_logits, const Tensor& grad_weight);
  void write_bias(const Chunk& chunk, void* grad_bias);

  Tensor weight_;
  OptionalTensor bias_;
  cpu::DType dtype_;
  int64_t count_, tiles_, tiles_at_once_, element_;
  Tensor hidden_, logits_;
};

}  // namespace mdlm_fast
