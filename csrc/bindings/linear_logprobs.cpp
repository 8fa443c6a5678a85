// Binds linear_token_logprobs and its gradient for CPU tensors: the head of linear_head.h where the processor and dtype
// have it, else the library's GEMM.
#include "linear_logprobs_library.h"

#include <limits>

namespace mdlm_fast {
namespace {

Tensor with_unit_stride(const Tensor& matrix) {
  return matrix.size(1) <= 1 || matrix.stride(1) == 1 ? matrix : torch::stable::contiguous(matrix);
}

// The scores that are not padding, and what both directions need of them.
struct Call {
  Targets targets;
  cpu::AllowedIds ids;
  cpu::LogitRows hidden;
  Tensor weight;
  int64_t vocabulary, depth;
  std::vector<int64_t> live;             // places of the scores that are not padding
  std::vector<int64_t> live_targets;
  std::vector<float> live_temperatures;

  Call(const Tensor& hidden_states, const Tensor& weight_matrix, const OptionalTensor& bias, const Tensor& rows,
       const Tensor& target_ids, const Tensor& temperature, const OptionalTensor& forbidden_ids, int64_t vocab_limit)
      : ids(allowed_ids(forbidden_ids, vocab_limit)), hidden(logit_rows(hidden_states, 0)),
        weight(with_unit_stride(weight_matrix)), vocabulary(weight.size(0)), depth(weight.size(1)) {
    STD_TORCH_CHECK(depth == hidden.width && dtype_of(weight) == hidden.dtype,
                    "mdlm_fast: weight must be [V, H] in the dtype of hidden");
    if (bias) pointer<char>(*bias, weight.scalar_type(), vocabulary, "bias");
    targets = read_targets(rows, target_ids, temperature, num_logit_rows(hidden_states), vocabulary);
    for (int64_t i = 0; i < targets.count; ++i) {
      if (targets.padding(i)) continue;
      live.push_back(i);
      live_targets.push_back(targets.targets[i]);
      live_temperatures.push_back(targets.temperature(i));
    }
  }

  int64_t count() const { return static_cast<int64_t>(live.size()); }

  cpu::LinearHead head(const OptionalTensor& bias) const {
    return {hidden.dtype, weight.data_ptr(), weight.stride(0), bias ? bias->data_ptr() : nullptr, vocabulary, depth};
  }

  cpu::HiddenRows gather() const {
    return cpu::HiddenRows(hidden.dtype, count(), depth, [&](int64_t n) { return hidden.row(targets.rows[live[n]]); });
  }

  cpu::LogprobRows rows(const cpu::HiddenRows& gathered) const {
    return {gathered, count(), live_targets.data(), live_temperatures.data(), ids};
  }
};

std::tuple<Tensor, Tensor, Tensor> linear_token_logprobs(Tensor hidden, Tensor weight, OptionalTensor bias,
                                                         Tensor rows, Tensor targets, Tensor temperature,
                                                         OptionalTensor forbidden_ids, int64_t vocab_limit,
                                                         bool need_entropy) {
  const Call call(hidden, weight, bias, rows, targets, temperature, forbidden_ids, vocab_limit);
  const cpu::LinearHead head = call.head(bias);
  const int64_t tiles = head.tiles();
  std::vector<cpu::TileStats> stats(static_cast<size_t>(call.count() * tiles));
  std::vector<float> target_logit(static_cast<size_t>(call.count()));
  if (cpu::gemm_kernels(head.dtype) != nullptr) {
    const cpu::HiddenRows gathered = call.gather();
    cpu::linear_logprob_tiles(head, call.rows(gathered), need_entropy, stats.data(), target_logit.data(),
                              parallel_for());
  } else {
    const cpu::HiddenRows none(head.dtype, 0, 0, nullptr);
    LibraryHead(hidden, call.weight, bias, call.hidden, call.targets.rows, call.live)
        .logprob_tiles(call.rows(none), need_entropy, stats.data(), target_logit.data());
  }
  Tensor logp = new_tensor(hidden, {call.targets.count}, ScalarType::Float);
  Tensor entropy = new_tensor(hidden, {need_entropy ? call.targets.count : 0}, ScalarType::Float);
  Tensor lse = new_tensor(hidden, {call.targets.count}, ScalarType::Double);
  float* logp_out = static_cast<float*>(logp.data_ptr());
  float* entropy_out = static_cast<float*>(entropy.data_ptr());
  double* lse_out = static_cast<double*>(lse.data_ptr());
  std::fill(logp_out, logp_out + call.targets.count, -std::numeric_limits<float>::infinity());
  std::fill(entropy_out, entropy_out + entropy.numel(), 0.0f);
  std::fill(lse_out, lse_out + call.targets.count, 0.0);
  for (int64_t n = 0; n < call.count(); ++n) {
    const cpu::RowLogprob result = cpu::merge_logprob(&stats[n * tiles], tiles, target_logit[n],
                                                      call.live_temperatures[n], need_entropy);
    logp_out[call.live[n]] = static_cast<float>(result.logp);
    if (need_entropy) entropy_out[call.live[n]] = static_cast<float>(result.entropy);
    lse_out[call.live[n]] = result.lse;
  }
  return {logp, entropy, lse};
}

// dL/dhidden from the fp32 gradients of the gathered rows: those of one row are added before they are rounded.
Tensor scatter_rows(const Tensor& hidden, const Call& call, const float* gathered) {
  Tensor grad = hidden.dim() == 3
                    ? torch::stable::new_zeros(hidden, {hidden.size(0), hidden.size(1), hidden.size(2)})
                    : torch::stable::new_zeros(hidden, {hidden.size(0), hidden.size(1)});
  const cpu::LogitRows out = logit_rows(grad, 0);
  std::vector<int64_t> order(call.live.size());
  for (size_t n = 0; n < order.size(); ++n) order[n] = static_cast<int64_t>(n);
  const auto row = [&](int64_t n) { return call.targets.rows[call.live[n]]; };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return row(a) < row(b); });
  std::vector<float> sum(static_cast<size_t>(call.depth));
  for (size_t k = 0; k < order.size();) {
    const int64_t r = row(order[k]);
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (; k < order.size() && row(order[k]) == r; ++k)
      for (int64_t h = 0; h < call.depth; ++h) sum[h] += gathered[order[k] * call.depth + h];
    cpu::gradient_kernels().narrow[static_cast<int>(out.dtype)](sum.data(), static_cast<int>(call.depth),
                                                                const_cast<void*>(out.row(r)));
  }
  return grad;
}

std::tuple<Tensor, Tensor, Tensor> linear_token_logprobs_backward(
    Tensor grad_logp, OptionalTensor grad_entropy, Tensor hidden, Tensor weight, OptionalTensor bias, Tensor rows,
    Tensor targets, Tensor temperature, OptionalTensor forbidden_ids, int64_t vocab_limit, Tensor entropy, Tensor lse,
    bool need_hidden, bool need_weight, bool need_bias) {
  const Call call(hidden, weight, bias, rows, targets, temperature, forbidden_ids, vocab_limit);
  const std::vector<cpu::RowGradient> gradients =
      row_gradients(call.targets, call.live, call.ids, grad_logp, grad_entropy, entropy, lse);
  const bool need_entropy = grad_entropy.has_value();
  const bool any = call.count() > 0;
  const auto output = [&](bool needed, std::initializer_list<int64_t> sizes) {
    if (!needed) return torch::stable::new_empty(hidden, {0});
    return any ? torch::stable::new_empty(hidden, sizes) : torch::stable::new_zeros(hidden, sizes);
  };
  Tensor grad_weight = output(need_weight, {call.vocabulary, call.depth});
  Tensor grad_bias = output(need_bias, {call.vocabulary});
  std::vector<float> grad_rows(static_cast<size_t>(need_hidden ? call.count() * call.depth : 0));
  const cpu::LinearGradients out{need_hidden ? grad_rows.data() : nullptr,
                                 need_weight ? grad_weight.data_ptr() : nullptr,
                                 need_bias ? grad_bias.data_ptr() : nullptr};
  if (any && cpu::gemm_kernels(call.hidden.dtype) != nullptr) {
    const cpu::HiddenRows gathered = call.gather();
    cpu::linear_logprob_gradients(call.head(bias), call.rows(gathered), gradients.data(), need_entropy, out,
                                  parallel_for());
  } else if (any) {
    const cpu::HiddenRows none(call.hidden.dtype, 0, 0, nullptr);
    LibraryHead(hidden, call.weight, bias, call.hidden, call.targets.rows, call.live)
        .gradients(call.rows(none), gradients.data(), need_entropy, out, grad_weight);
  }
  return {need_hidden ? scatter_rows(hidden, call, grad_rows.data()) : torch::stable::new_empty(hidden, {0}),
          grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mdlm_fast_cpp, m) {
  m.def(
      "linear_token_logprobs(Tensor hidden, Tensor weight, Tensor? bias, Tensor rows, Tensor targets, "
      "Tensor temperature, Tensor? forbidden_ids, int vocab_limit, bool need_entropy) -> "
      "(Tensor logp, Tensor entropy, Tensor lse)");
  m.def(
      "linear_token_logprobs_backward(Tensor grad_logp, Tensor? grad_entropy, Tensor hidden, Tensor weight, "
      "Tensor? bias, Tensor rows, Tensor targets, Tensor temperature, Tensor? forbidden_ids, int vocab_limit, "
      "Tensor entropy, Tensor lse, bool need_hidden, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mdlm_fast_cpp, CPU, m) {
  m.impl("linear_token_logprobs", TORCH_BOX(&linear_token_logprobs));
  m.impl("linear_token_logprobs_backward", TORCH_BOX(&linear_token_logprobs_backward));
}

}  // namespace mdlm_fast
