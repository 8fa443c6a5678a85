// Binds token_logprobs and its gradient for CUDA tensors, and the two parts that the LM-head ops take from them.
#include "../../cuda/logit_gradient.h"
#include "../../cuda/token_logprobs.h"
#include "logit_source.h"

namespace mdlm_fast {
namespace {

constexpr int64_t kTileColumns = 2048, kRecordFields = 4, kPartialFields = 8;

using Logprobs = std::tuple<Tensor, Tensor, Tensor>;

// Logits [M, V] or [B, L, V] with any strides of rows.
struct Logits {
  int64_t count, width;
  cuda::ElementType type;
  cuda::LogitRows rows;

  explicit Logits(const Tensor& logits)
      : width(logits.size(logits.dim() - 1)), type(element_type(logits)),
        rows(logit_rows(logits, logits.scalar_type(), width)) {
    count = (logits.dim() == 3 ? logits.size(0) : 1) * logits.size(logits.dim() - 2);
    STD_TORCH_CHECK(width >= 1 && width < INT32_MAX - kTileColumns && count <= INT32_MAX,
                    "mdlm_fast: logits of ", count, " rows of ", width, " are out of range");
  }
};

int temperature_stride(const Tensor& temperature) { return temperature.numel() == 1 ? 0 : 1; }

const float* temperatures(const Tensor& temperature, int64_t count) {
  return pointer<float>(temperature, ScalarType::Float, temperature.numel() == 1 ? 1 : count, "temperature");
}

int64_t num_forbidden(const OptionalTensor& ids) { return ids ? ids->numel() : 0; }

Logprobs new_logprobs(const Tensor& like, int64_t count, bool need_entropy) {
  return {torch::stable::new_empty(like, {count}, ScalarType::Float),
          torch::stable::new_empty(like, {need_entropy ? count : 0}, ScalarType::Float),
          torch::stable::new_empty(like, {count}, ScalarType::Double)};
}

// Where a launcher writes the three outputs.
template <class Params>
void set_outputs(Params& params, const Logprobs& out, bool need_entropy) {
  params.logp = static_cast<float*>(std::get<0>(out).data_ptr());
  params.entropy = need_entropy ? static_cast<float*>(std::get<1>(out).data_ptr()) : nullptr;
  params.lse = static_cast<double*>(std::get<2>(out).data_ptr());
}

Logprobs token_logprobs(Tensor logits, Tensor rows, Tensor targets, Tensor temperature, OptionalTensor forbidden_ids,
                        int64_t vocab_limit, bool need_entropy) {
  const DeviceScope scope(logits);
  const Logits z(logits);
  const int64_t count = rows.numel(), tiles = (z.width + kTileColumns - 1) / kTileColumns;
  cuda::TokenLogprobsParams params{};
  params.source.type = z.type;
  params.source.logits = z.rows;
  params.source.width = static_cast<int>(z.width);
  params.source.tiles = static_cast<int>(tiles);
  params.source.vocab_limit = static_cast<int>(std::min<int64_t>(vocab_limit, INT32_MAX));
  params.source.num_forbidden = static_cast<int>(num_forbidden(forbidden_ids));
  params.source.forbidden =
      pointer<int64_t>(forbidden_ids, ScalarType::Long, num_forbidden(forbidden_ids), "forbidden_ids");
  params.source.capacity = count;
  params.source.rows = pointer<int32_t>(rows, ScalarType::Int, count, "rows");
  params.targets = pointer<int64_t>(targets, ScalarType::Long, count, "targets");
  params.temperature = temperatures(temperature, count);
  params.temperature_stride = temperature_stride(temperature);
  const Tensor records = torch::stable::new_empty(logits, {count, tiles, kRecordFields}, ScalarType::Float);
  params.records = static_cast<float*>(records.data_ptr());
  const Logprobs out = new_logprobs(logits, count, need_entropy);
  set_outputs(params, out, need_entropy);
  check_launch(cuda::token_logprobs(params, scope.stream()), "token_logprobs");
  return out;
}

Logprobs merge_logprobs(Tensor partials, Tensor target_logits, Tensor rows, Tensor temperature, bool need_entropy) {
  const DeviceScope scope(partials);
  STD_TORCH_CHECK(partials.dim() == 3, "mdlm_fast: partials must be [N, tiles, 8]");
  const int64_t count = partials.size(0), tiles = partials.size(1);
  cuda::MergeLogprobsParams params{};
  params.count = count;
  params.tiles = static_cast<int>(tiles);
  params.partials = pointer<float>(partials, ScalarType::Float, count * tiles * kPartialFields, "partials");
  params.target_logits = pointer<float>(target_logits, ScalarType::Float, count, "target_logits");
  params.rows = pointer<int32_t>(rows, ScalarType::Int, count, "rows");
  params.temperature = temperatures(temperature, count);
  params.temperature_stride = temperature_stride(temperature);
  const Logprobs out = new_logprobs(partials, count, need_entropy);
  set_outputs(params, out, need_entropy);
  check_launch(cuda::merge_logprobs(params, scope.stream()), "merge_logprobs");
  return out;
}

// Runs the gradient of `logits`; `gradient` is written. `listed`: scores come in any order and rows may have several.
void run_gradient(const Tensor& logits, const Tensor& gradient, bool listed, const Tensor& grad_logp,
                  const OptionalTensor& grad_entropy, const Tensor& rows, const Tensor& targets,
                  const Tensor& temperature, const OptionalTensor& forbidden_ids, int64_t vocab_start,
                  int64_t vocab_limit, const Tensor& entropy, const Tensor& lse, const char* op) {
  const DeviceScope scope(logits);
  const Logits z(logits);
  const int64_t count = rows.numel();
  STD_TORCH_CHECK(vocab_start >= 0 && vocab_start + z.width < INT32_MAX,
                  "mdlm_fast: a vocabulary of ", z.width, " from id ", vocab_start, " is out of range");
  cuda::LogitGradientParams params{};
  cuda::GradientInputs& inputs = params.inputs;
  inputs.count = count;
  inputs.grad_logp = pointer<float>(grad_logp, ScalarType::Float, count, "grad_logp");
  inputs.grad_entropy = pointer<float>(grad_entropy, ScalarType::Float, count, "grad_entropy");
  inputs.targets = pointer<int64_t>(targets, ScalarType::Long, count, "targets");
  inputs.rows = pointer<int32_t>(rows, ScalarType::Int, count, "rows");
  inputs.temperature = temperatures(temperature, count);
  inputs.temperature_stride = temperature_stride(temperature);
  if (grad_entropy) inputs.entropy = pointer<float>(entropy, ScalarType::Float, count, "entropy");
  inputs.lse = pointer<double>(lse, ScalarType::Double, count, "lse");
  inputs.num_forbidden = static_cast<int>(num_forbidden(forbidden_ids));
  inputs.forbidden = pointer<int64_t>(forbidden_ids, ScalarType::Long, inputs.num_forbidden, "forbidden_ids");
  inputs.vocab_limit = static_cast<int>(std::min<int64_t>(vocab_limit, INT32_MAX));
  params.type = z.type;
  params.logits = z.rows;
  params.num_rows = z.count;
  params.width = static_cast<int>(z.width);
  params.vocab_start = static_cast<int>(vocab_start);
  params.gradient = gradient.data_ptr();
  params.gradient_stride = listed ? z.width : z.rows.row_stride;
  const Tensor scores = torch::stable::new_empty(logits, {count * cuda::kScoreGradientBytes}, ScalarType::Byte);
  params.scores = static_cast<cuda::ScoreGradient*>(scores.data_ptr());
  OptionalTensor lists;
  if (listed) {
    lists = torch::stable::new_empty(logits, {2 * z.count + count}, ScalarType::Int);
    params.lists = static_cast<int32_t*>(lists->data_ptr());
  }
  check_launch(cuda::logit_gradient(params, scope.stream()), op);
}

Tensor token_logprobs_backward(Tensor grad_logp, OptionalTensor grad_entropy, Tensor logits, Tensor rows,
                               Tensor targets, Tensor temperature, OptionalTensor forbidden_ids, int64_t vocab_limit,
                               Tensor entropy, Tensor lse) {
  const Tensor grad = logits.dim() == 3
                          ? torch::stable::new_empty(logits, {logits.size(0), logits.size(1), logits.size(2)})
                          : torch::stable::new_empty(logits, {logits.size(0), logits.size(1)});
  run_gradient(logits, grad, true, grad_logp, grad_entropy, rows, targets, temperature, forbidden_ids, 0, vocab_limit,
               entropy, lse, "token_logprobs_backward");
  return grad;
}

void logit_gradient(Tensor logits, Tensor grad_logp, OptionalTensor grad_entropy, Tensor targets, Tensor temperature,
                    OptionalTensor forbidden_ids, int64_t vocab_start, int64_t vocab_limit, Tensor entropy, Tensor lse,
                    Tensor rows) {
  STD_TORCH_CHECK(logits.dim() == 2 && logits.size(0) == rows.numel(), "mdlm_fast: one row of logits for each score");
  run_gradient(logits, logits, false, grad_logp, grad_entropy, rows, targets, temperature, forbidden_ids, vocab_start,
               vocab_limit, entropy, lse, "logit_gradient_");
}

}  // namespace

MDLM_FAST_CUDA_FRAGMENT(m) {
  m.def(
      "token_logprobs(Tensor logits, Tensor rows, Tensor targets, Tensor temperature, Tensor? forbidden_ids, "
      "int vocab_limit, bool need_entropy) -> (Tensor logp, Tensor entropy, Tensor lse)");
  m.def(
      "token_logprobs_backward(Tensor grad_logp, Tensor? grad_entropy, Tensor logits, Tensor rows, Tensor targets, "
      "Tensor temperature, Tensor? forbidden_ids, int vocab_limit, Tensor entropy, Tensor lse) -> Tensor");
  // Row i of logits [N, columns], a part of the vocabulary from id vocab_start on, becomes its gradient; 0 where
  // rows[i] < 0.
  m.def(
      "logit_gradient_(Tensor(a!) logits, Tensor grad_logp, Tensor? grad_entropy, Tensor targets, Tensor temperature, "
      "Tensor? forbidden_ids, int vocab_start, int vocab_limit, Tensor entropy, Tensor lse, Tensor rows) -> ()");
  // From partials [N, tiles, 8] of score_partials with stats_tempered, and the targets' logits [N].
  m.def(
      "merge_logprobs(Tensor partials, Tensor target_logits, Tensor rows, Tensor temperature, bool need_entropy) -> "
      "(Tensor logp, Tensor entropy, Tensor lse)");
}

MDLM_FAST_CUDA_IMPL(m) {
  m.impl("token_logprobs", TORCH_BOX(&token_logprobs));
  m.impl("token_logprobs_backward", TORCH_BOX(&token_logprobs_backward));
  m.impl("logit_gradient_", TORCH_BOX(&logit_gradient));
  m.impl("merge_logprobs", TORCH_BOX(&merge_logprobs));
}

}  // namespace mdlm_fast
