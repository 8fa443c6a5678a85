#include "linear_logprobs_library.h"

#include <cstring>
#include <limits>

namespace mdlm_fast {
namespace {

using cpu::kTileColumns;

// Of the logits of one chunk.
constexpr int64_t kChunkBytes = int64_t{32} << 20;

Tensor part(const Tensor& t, int64_t dim, int64_t from, int64_t count) {
  return torch::stable::narrow(const_cast<Tensor&>(t), dim, from, count);
}

// Products are formed in fp32: a product rounded to 16 bits chunk by chunk would bias the sum.
Tensor in_fp32(const Tensor& t) {
  return t.scalar_type() == ScalarType::Float ? t : torch::stable::to(t, ScalarType::Float);
}

void product_out(const Tensor& a, const Tensor& b, const Tensor& out) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a), from(b), from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // releases the returned handle
}

}  // namespace

LibraryHead::LibraryHead(const Tensor& like, const Tensor& weight, const OptionalTensor& bias,
                         const cpu::LogitRows& hidden, const int32_t* rows, const std::vector<int64_t>& live)
    : weight_(weight), bias_(bias), dtype_(hidden.dtype), count_(static_cast<int64_t>(live.size())),
      tiles_((weight.size(0) + kTileColumns - 1) / kTileColumns), element_(static_cast<int64_t>(cpu::size_of(dtype_))) {
  tiles_at_once_ = std::clamp<int64_t>(kChunkBytes / (std::max<int64_t>(count_, 1) * kTileColumns * element_), 1, tiles_);
  hidden_ = torch::stable::new_empty(like, {count_, hidden.width});
  const size_t bytes = static_cast<size_t>(hidden.width * element_);
  for (int64_t n = 0; n < count_; ++n)
    std::memcpy(static_cast<char*>(hidden_.data_ptr()) + n * bytes, hidden.row(rows[live[n]]), bytes);
  logits_ = torch::stable::new_empty(like, {count_, columns_at_once()});
}

LibraryHead::Chunk LibraryHead::chunk(int64_t index) const {
  const int64_t first = index * tiles_at_once_, id = first * kTileColumns;
  return {first, std::min(tiles_at_once_, tiles_ - first), id, std::min(columns_at_once(), weight_.size(0) - id)};
}

char* LibraryHead::row(int64_t n) const {
  return static_cast<char*>(logits_.data_ptr()) + n * columns_at_once() * element_;
}

const void* LibraryHead::compute(const Chunk& c) {
  OptionalTensor bias;
  if (bias_) bias = part(*bias_, 0, c.first_id, c.columns);
  linear_out(hidden_, part(weight_, 0, c.first_id, c.columns), bias, part(logits_, 1, 0, c.columns));
  return logits_.data_ptr();
}

void LibraryHead::logprob_tiles(const cpu::LogprobRows& rows, bool need_entropy, cpu::TileStats* stats,
                                float* target_logit) {
  std::fill(target_logit, target_logit + count_, -std::numeric_limits<float>::infinity());
  for (int64_t index = 0; index < num_chunks() && count_ > 0; ++index) {
    const Chunk c = chunk(index);
    compute(c);
    torch::stable::parallel_for(0, count_ * c.tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t n = k / c.tiles, tile = k % c.tiles;
        stats[n * tiles_ + c.first_tile + tile] = cpu::logprob_tile(row(n), dtype_, c.columns, c.first_id, tile, rows.ids,
                                                                    1.0f / rows.temperatures[n], need_entropy);
      }
    });
    for (int64_t n = 0; n < count_; ++n)
      if (rows.targets[n] >= c.first_id && rows.targets[n] < c.first_id + c.columns)
        target_logit[n] = cpu::allowed_logit(row(n), dtype_, c.first_id, rows.targets[n], rows.ids);
  }
}

void LibraryHead::gradients(const cpu::LogprobRows& rows, const cpu::RowGradient* gradients, bool need_entropy,
                            const cpu::LinearGradients& out, const Tensor& grad_weight) {
  for (int64_t index = 0; index < num_chunks(); ++index) {
    const Chunk c = chunk(index);
    compute(c);
    torch::stable::parallel_for(0, count_ * c.tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t n = k / c.tiles;
        cpu::gradient_tile(row(n), row(n), dtype_, c.columns, c.first_id, k % c.tiles, rows.ids, &gradients[n], 1,
                           need_entropy);
      }
    });
    const Tensor grad_logits = in_fp32(part(logits_, 1, 0, c.columns));
    if (out.grad_hidden != nullptr) add_hidden(c, grad_logits, out.grad_hidden);
    if (out.grad_weight != nullptr) write_weight(c, grad_logits, grad_weight);
    if (out.grad_bias != nullptr) write_bias(c, out.grad_bias);
  }
}

void LibraryHead::add_hidden(const Chunk& c, const Tensor& grad_logits, float* grad_hidden) {
  const Tensor product = torch::stable::matmul(grad_logits, in_fp32(part(weight_, 0, c.first_id, c.columns)));
  const float* from = static_cast<const float*>(product.data_ptr());
  torch::stable::parallel_for(0, product.numel(), 1 << 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) grad_hidden[i] += from[i];
  });
}

void LibraryHead::write_weight(const Chunk& c, const Tensor& grad_logits, const Tensor& grad_weight) {
  Tensor to = part(grad_weight, 0, c.first_id, c.columns);
  const Tensor transposed = torch::stable::transpose(grad_logits, 0, 1);
  if (dtype_ == cpu::DType::kFloat32) {
    product_out(transposed, hidden_, to);
  } else {
    torch::stable::copy_(to, torch::stable::matmul(transposed, in_fp32(hidden_)));
  }
}

void LibraryHead::write_bias(const Chunk& c, void* grad_bias) {
  torch::stable::parallel_for(0, c.tiles, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> sums(kTileColumns);
    std::vector<float> values(kTileColumns);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kTileColumns, columns = std::min<int64_t>(kTileColumns, c.columns - first);
      std::fill(sums.begin(), sums.end(), 0.0);
      for (int64_t n = 0; n < count_; ++n) {
        cpu::score_kernels().widen[static_cast<int>(dtype_)](row(n) + first * element_, static_cast<int>(columns),
                                                             values.data());
        for (int64_t v = 0; v < columns; ++v) sums[v] += values[v];
      }
      std::copy(sums.begin(), sums.begin() + columns, values.begin());
      cpu::gradient_kernels().narrow[static_cast<int>(dtype_)](
          values.data(), static_cast<int>(columns), static_cast<char*>(grad_bias) + (c.first_id + first) * element_);
    }
  });
}

}  // namespace mdlm_fast
