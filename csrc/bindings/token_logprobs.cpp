// Binds token_logprobs and its gradient for CPU tensors.
#include <limits>

#include "logprob_arguments.h"

namespace mdlm_fast {
namespace {

constexpr int64_t kTilesPerTask = 8;

// Calls f(i, tile) for every score and tile, in parallel.
template <class F>
void for_each_tile(int64_t count, int64_t tiles, const F& f) {
  const int64_t groups = (tiles + kTilesPerTask - 1) / kTilesPerTask;
  torch::stable::parallel_for(0, count * groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t i = task / groups, first = task % groups * kTilesPerTask;
      for (int64_t tile = first; tile < std::min(first + kTilesPerTask, tiles); ++tile) f(i, tile);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> token_logprobs(Tensor logits, Tensor rows, Tensor targets, Tensor temperature,
                                                  OptionalTensor forbidden_ids, int64_t vocab_limit,
                                                  bool need_entropy) {
  const cpu::LogitRows z = logit_rows(logits, 0);
  const cpu::AllowedIds ids = allowed_ids(forbidden_ids, vocab_limit);
  const Targets t = read_targets(rows, targets, temperature, num_logit_rows(logits), z.width);
  const int64_t tiles = z.tiles();
  std::vector<cpu::TileStats> stats(static_cast<size_t>(t.count * tiles));
  for_each_tile(t.count, tiles, [&](int64_t i, int64_t tile) {
    if (t.padding(i)) return;
    stats[i * tiles + tile] = cpu::logprob_tile(z.row(t.rows[i]), z.dtype, z.width, 0, tile, ids,
                                                1.0f / t.temperature(i), need_entropy);
  });
  Tensor logp = new_tensor(logits, {t.count}, ScalarType::Float);
  Tensor entropy = new_tensor(logits, {need_entropy ? t.count : 0}, ScalarType::Float);
  Tensor lse = new_tensor(logits, {t.count}, ScalarType::Double);
  float* logp_out = static_cast<float*>(logp.data_ptr());
  float* entropy_out = static_cast<float*>(entropy.data_ptr());
  double* lse_out = static_cast<double*>(lse.data_ptr());
  for (int64_t i = 0; i < t.count; ++i) {
    cpu::RowLogprob result{-std::numeric_limits<double>::infinity(), 0.0, 0.0};
    if (!t.padding(i)) {
      const float target = cpu::allowed_logit(z.row(t.rows[i]), z.dtype, 0, t.targets[i], ids);
      result = cpu::merge_logprob(&stats[i * tiles], tiles, target, t.temperature(i), need_entropy);
    }
    logp_out[i] = static_cast<float>(result.logp);
    if (need_entropy) entropy_out[i] = static_cast<float>(result.entropy);
    lse_out[i] = result.lse;
  }
  return {logp, entropy, lse};
}

// Scores in the order of their rows, so that those of one row lie together: their gradients are summed in fp32.
std::vector<int64_t> by_row(const Targets& t) {
  std::vector<int64_t> order;
  for (int64_t i = 0; i < t.count; ++i)
    if (!t.padding(i)) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return t.rows[a] < t.rows[b]; });
  return order;
}

Tensor token_logprobs_backward(Tensor grad_logp, OptionalTensor grad_entropy, Tensor logits, Tensor rows,
                               Tensor targets, Tensor temperature, OptionalTensor forbidden_ids, int64_t vocab_limit,
                               Tensor entropy, Tensor lse) {
  const cpu::LogitRows z = logit_rows(logits, 0);
  const cpu::AllowedIds ids = allowed_ids(forbidden_ids, vocab_limit);
  const Targets t = read_targets(rows, targets, temperature, num_logit_rows(logits), z.width);
  const std::vector<int64_t> order = by_row(t);
  const std::vector<cpu::RowGradient> gradients =
      row_gradients(t, order, ids, grad_logp, grad_entropy, entropy, lse);
  std::vector<int64_t> starts;  // of each row's group in `gradients`
  for (size_t k = 0; k < order.size(); ++k)
    if (k == 0 || t.rows[order[k]] != t.rows[order[k - 1]]) starts.push_back(static_cast<int64_t>(k));
  const int64_t groups = static_cast<int64_t>(starts.size());
  starts.push_back(static_cast<int64_t>(order.size()));

  Tensor grad = logits.dim() == 3 ? torch::stable::new_zeros(logits, {logits.size(0), logits.size(1), logits.size(2)})
                                  : torch::stable::new_zeros(logits, {logits.size(0), logits.size(1)});
  const cpu::LogitRows out = logit_rows(grad, 0);
  for_each_tile(groups, z.tiles(), [&](int64_t group, int64_t tile) {
    const int64_t first = starts[group], row = t.rows[order[first]];
    cpu::gradient_tile(z.row(row), const_cast<void*>(out.row(row)), z.dtype, z.width, 0, tile, ids, &gradients[first],
                       starts[group + 1] - first, grad_entropy.has_value());
  });
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mdlm_fast_cpp, m) {
  m.def(
      "token_logprobs(Tensor logits, Tensor rows, Tensor targets, Tensor temperature, Tensor? forbidden_ids, "
      "int vocab_limit, bool need_entropy) -> (Tensor logp, Tensor entropy, Tensor lse)");
  m.def(
      "token_logprobs_backward(Tensor grad_logp, Tensor? grad_entropy, Tensor logits, Tensor rows, Tensor targets, "
      "Tensor temperature, Tensor? forbidden_ids, int vocab_limit, Tensor entropy, Tensor lse) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mdlm_fast_cpp, CPU, m) {
  m.impl("token_logprobs", TORCH_BOX(&token_logprobs));
  m.impl("token_logprobs_backward", TORCH_BOX(&token_logprobs_backward));
}

}  // namespace mdlm_fast
