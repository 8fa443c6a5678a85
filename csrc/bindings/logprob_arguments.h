// Reading the arguments that the ops on log-probabilities share. Shapes and values were checked by mdlm_fast.ops; what
// is checked here is only what would let a kernel leave its buffers.
#pragma once

#include <vector>

#include "../cpu/token_logprobs.h"
#include "score_arguments.h"
#include "tensors.h"

namespace mdlm_fast {

inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

// Logits [N, V] or [B, L, V] of any row strides.
inline cpu::LogitRows logit_rows(const Tensor& logits, int64_t vocab_start) {
  const int64_t dim = logits.dim();
  STD_TORCH_CHECK(dim == 2 || dim == 3, "mdlm_fast: logits must have 2 or 3 dimensions");
  STD_TORCH_CHECK(logits.stride(dim - 1) == 1 || logits.size(dim - 1) <= 1,
                  "mdlm_fast: the last dimension of logits must be contiguous");
  cpu::LogitRows rows{};
  rows.data = logits.data_ptr();
  rows.dtype = dtype_of(logits);
  rows.rows_per_batch = std::max<int64_t>(logits.size(dim - 2), 1);
  rows.row_stride = logits.stride(dim - 2);
  rows.batch_stride = dim == 3 ? logits.stride(0) : 0;
  rows.width = logits.size(dim - 1);
  rows.vocab_start = vocab_start;
  return rows;
}

inline int64_t num_logit_rows(const Tensor& logits) {
  return logits.dim() == 3 ? logits.size(0) * logits.size(1) : logits.size(0);
}

inline cpu::AllowedIds allowed_ids(const OptionalTensor& forbidden_ids, int64_t vocab_limit) {
  cpu::AllowedIds ids{{}, vocab_limit};
  if (forbidden_ids) {
    const int64_t count = forbidden_ids->numel();
    const int64_t* from = pointer<int64_t>(*forbidden_ids, ScalarType::Long, count, "forbidden_ids");
    ids.forbidden.assign(from, from + count);
    std::sort(ids.forbidden.begin(), ids.forbidden.end());
    ids.forbidden.erase(std::unique(ids.forbidden.begin(), ids.forbidden.end()), ids.forbidden.end());
  }
  return ids;
}

// Which row each of N scores reads, what it looks for there, and at what temperature.
struct Targets {
  int64_t count;
  const int32_t* rows;     // -1: padding
  const int64_t* targets;  // global ids
  const float* temperatures;
  int64_t temperature_stride;

  float temperature(int64_t i) const { return temperatures[i * temperature_stride]; }
  bool padding(int64_t i) const { return rows[i] < 0; }
};

inline Targets read_targets(const Tensor& rows, const Tensor& targets, const Tensor& temperature, int64_t num_rows,
                            int64_t vocabulary) {
  Targets t{};
  t.count = rows.numel();
  t.rows = pointer<int32_t>(rows, ScalarType::Int, t.count, "rows");
  t.targets = pointer<int64_t>(targets, ScalarType::Long, t.count, "targets");
  t.temperature_stride = temperature.numel() == 1 ? 0 : 1;
  t.temperatures =
      pointer<float>(temperature, ScalarType::Float, t.temperature_stride == 0 ? 1 : t.count, "temperature");
  for (int64_t i = 0; i < t.count; ++i) {
    STD_TORCH_CHECK(t.rows[i] < num_rows, "mdlm_fast: rows[", i, "]=", t.rows[i], " is outside ", num_rows, " rows");
    STD_TORCH_CHECK(t.rows[i] < 0 || (t.targets[i] >= 0 && t.targets[i] < vocabulary), "mdlm_fast: targets[", i,
                    "]=", t.targets[i], " is outside a vocabulary of ", vocabulary);
  }
  return t;
}

// What the gradient needs of the scores at `places`. A target that is not allowed has probability 0 and no gradient.
inline std::vector<cpu::RowGradient> row_gradients(const Targets& t, const std::vector<int64_t>& places,
                                                   const cpu::AllowedIds& ids, const Tensor& grad_logp,
                                                   const OptionalTensor& grad_entropy, const Tensor& entropy,
                                                   const Tensor& lse) {
  const float* g = pointer<float>(grad_logp, ScalarType::Float, t.count, "grad_logp");
  const double* l = pointer<double>(lse, ScalarType::Double, t.count, "lse");
  const float* g_entropy = nullptr;
  const float* h = nullptr;
  if (grad_entropy) {
    g_entropy = pointer<float>(*grad_entropy, ScalarType::Float, t.count, "grad_entropy");
    h = pointer<float>(entropy, ScalarType::Float, t.count, "entropy");
  }
  std::vector<cpu::RowGradient> gradients;
  for (const int64_t i : places) {
    const bool allowed = t.targets[i] < ids.limit &&
                         !std::binary_search(ids.forbidden.begin(), ids.forbidden.end(), t.targets[i]);
    gradients.push_back({allowed ? g[i] : 0.0f, g_entropy ? g_entropy[i] : 0.0f, h ? h[i] : 0.0f, l[i],
                         t.temperature(i), t.targets[i]});
  }
  return gradients;
}

}  // namespace mdlm_fast
