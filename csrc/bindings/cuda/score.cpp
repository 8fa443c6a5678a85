// Binds score_partials, finish_scores and score_rows for CUDA tensors.
#include "../../cuda/score_greedy.h"
#include "logit_source.h"

namespace mdlm_fast {
namespace {

using cuda::FinishOptions;
using cuda::FinishScoresParams;
using cuda::ScorePartialsParams;
using cuda::ScoreSource;

Tensor new_floats(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes, ScalarType::Float);
}

float* floats(const Tensor& tensor) { return tensor.numel() ? static_cast<float*>(tensor.data_ptr()) : nullptr; }

// The results of finish_scores and score_rows, and the parameters that say where they go.
struct Finish {
  Scores scores;
  FinishScoresParams params;
};

// `partials` is [C, tiles, 8], `tempered_rest` [C, tiles] or null.
Finish prepare_finish(const ScoreSource& source, const FinishOptions& options, const float* partials,
                      const float* tempered_rest, const Tensor& rows, const Tensor& row_position,
                      const Tensor& temperature, const Tensor& seeds, const Tensor& step) {
  const int64_t capacity = source.capacity, sequences = temperature.numel();
  const auto output = [&](cuda::Stat stat) { return new_floats(rows, {options.stats & stat ? capacity : 0}); };
  const Scores scores{torch::stable::new_empty(rows, {capacity}, ScalarType::Long), output(cuda::kLogp),
                      output(cuda::kLogpTempered), output(cuda::kMargin), output(cuda::kEntropy)};
  FinishScoresParams params{};
  params.source = source;
  params.options = options;
  params.partials = partials;
  params.tempered_rest = tempered_rest;
  params.row_position = pointer<int32_t>(row_position, ScalarType::Int, capacity, "row_position");
  params.seeds = pointer<int64_t>(seeds, ScalarType::Long, sequences, "seeds");
  params.step_stride = step.numel() > 1 ? 1 : 0;
  params.step = pointer<int32_t>(step, ScalarType::Int, params.step_stride ? sequences : 1, "step");
  params.token = static_cast<int64_t*>(std::get<0>(scores).data_ptr());
  params.logp = floats(std::get<1>(scores));
  params.logp_tempered = floats(std::get<2>(scores));
  params.margin = floats(std::get<3>(scores));
  params.entropy = floats(std::get<4>(scores));
  return {scores, params};
}

Scores launch_finish(Finish finish, const Tensor& rows, cudaStream_t stream) {
  const Tensor workspace = new_floats(rows, {cuda::workspace_floats(finish.params)});
  finish.params.workspace = floats(workspace);
  check_launch(cuda::finish_scores(finish.params, stream), "finish_scores");
  return finish.scores;
}

Tensor score_partials(Tensor logits, Tensor rows, Tensor row_sequence, Tensor temperature,
                      OptionalTensor forbidden_ids, OptionalTensor guidance_logits, OptionalTensor guidance_rows,
                      double guidance_scale, int64_t vocab_start, int64_t vocab_limit, bool normalize_all,
                      bool stats_tempered, int64_t stats) {
  const DeviceScope scope(logits);
  const ScoreSource source = score_source(logits, rows, row_sequence, temperature, forbidden_ids, guidance_logits,
                                          guidance_rows, guidance_scale, vocab_start, vocab_limit, normalize_all);
  // What finish_scores will need beyond `stats` is not known: the runner-up and the candidates' mass are always formed.
  ScorePartialsParams wanted{};
  wanted.source = source;
  wanted.second = wanted.mass = true;
  wanted.moment = (stats & cuda::kEntropy) != 0;
  wanted.tempered_moment = stats_tempered;
  const Tensor partials = new_floats(rows, {source.capacity, source.tiles, 8});
  wanted.partials = floats(partials);
  check_launch(cuda::score_partials(wanted, scope.stream()), "score_partials");
  return partials;
}

Scores finish_scores(Tensor partials, OptionalTensor logits, OptionalTensor hidden, OptionalTensor weight,
                     OptionalTensor bias, Tensor rows, Tensor row_sequence, Tensor row_position, Tensor temperature,
                     Tensor seeds, Tensor step, OptionalTensor forbidden_ids, OptionalTensor guidance_logits,
                     OptionalTensor guidance_rows, double guidance_scale, int64_t vocab_limit, int64_t top_k,
                     double top_p, bool sample, bool normalize_all, bool stats_tempered, int64_t stats) {
  STD_TORCH_CHECK(logits.has_value(),
                  "mdlm_fast: this finish_scores reads logits; mdlm_fast.ops forms them from hidden and weight");
  const DeviceScope scope(*logits);
  const ScoreSource source = score_source(*logits, rows, row_sequence, temperature, forbidden_ids, guidance_logits,
                                          guidance_rows, guidance_scale, 0, vocab_limit, normalize_all);
  const float* records =
      pointer<float>(partials, ScalarType::Float, source.capacity * source.tiles * 8, "partials");
  STD_TORCH_CHECK(reinterpret_cast<int64_t>(records) % 16 == 0, "mdlm_fast: partials must be 16-byte aligned");
  const FinishOptions options =
      cuda::finish_options(static_cast<int>(stats), stats_tempered, sample, top_k, top_p);
  return launch_finish(
      prepare_finish(source, options, records, nullptr, rows, row_position, temperature, seeds, step), rows,
      scope.stream());
}

// Both in one call, and what nobody asks for is not formed: one launch where no row draws and nothing is filtered.
Scores score_rows(Tensor logits, Tensor rows, Tensor row_sequence, Tensor row_position, Tensor temperature,
                  Tensor seeds, Tensor step, OptionalTensor forbidden_ids, OptionalTensor guidance_logits,
                  OptionalTensor guidance_rows, double guidance_scale, int64_t vocab_limit, int64_t top_k,
                  double top_p, bool sample, bool normalize_all, bool stats_tempered, int64_t stats) {
  const DeviceScope scope(logits);
  const ScoreSource source = score_source(logits, rows, row_sequence, temperature, forbidden_ids, guidance_logits,
                                          guidance_rows, guidance_scale, 0, vocab_limit, normalize_all);
  const FinishOptions options =
      cuda::finish_options(static_cast<int>(stats), stats_tempered, sample, top_k, top_p);
  const bool rest = normalize_all && options.needs_tempered && !options.filtered;
  const Tensor tempered_rest = new_floats(rows, {rest ? source.capacity : 0, source.tiles});
  const Tensor partials = new_floats(rows, {source.capacity, source.tiles, 8});
  ScorePartialsParams wanted{};
  wanted.source = source;
  wanted.second = (stats & cuda::kMargin) != 0;
  wanted.mass = sample || options.needs_tempered;
  wanted.moment = (stats & cuda::kEntropy) != 0;
  wanted.tempered_moment = stats_tempered;
  wanted.partials = floats(partials);
  wanted.tempered_rest = floats(tempered_rest);
  const Finish finish = prepare_finish(source, options, wanted.partials, wanted.tempered_rest, rows, row_position,
                                       temperature, seeds, step);
  if (cuda::needs_records_alone(finish.params)) {
    check_launch(cuda::score_greedy(wanted, finish.params, scope.stream()), "score_greedy");
    return finish.scores;
  }
  check_launch(cuda::score_partials(wanted, scope.stream()), "score_partials");
  return launch_finish(finish, rows, scope.stream());
}

}  // namespace

MDLM_FAST_CUDA_FRAGMENT(m) {
  m.def(
      "score_rows(Tensor logits, Tensor rows, Tensor row_sequence, Tensor row_position, Tensor temperature, "
      "Tensor seeds, Tensor step, Tensor? forbidden_ids, Tensor? guidance_logits, Tensor? guidance_rows, "
      "float guidance_scale, int vocab_limit, int top_k, float top_p, bool sample, bool normalize_all, "
      "bool stats_tempered, int stats) -> (Tensor token, Tensor logp, Tensor logp_T, Tensor margin, Tensor entropy)");
  m.def(
      "score_partials(Tensor logits, Tensor rows, Tensor row_sequence, Tensor temperature, Tensor? forbidden_ids, "
      "Tensor? guidance_logits, Tensor? guidance_rows, float guidance_scale, int vocab_start, int vocab_limit, "
      "bool normalize_all, bool stats_tempered, int stats) -> Tensor");
  m.def(
      "finish_scores(Tensor partials, Tensor? logits, Tensor? hidden, Tensor? weight, Tensor? bias, Tensor rows, "
      "Tensor row_sequence, Tensor row_position, Tensor temperature, Tensor seeds, Tensor step, "
      "Tensor? forbidden_ids, Tensor? guidance_logits, Tensor? guidance_rows, float guidance_scale, int vocab_limit, "
      "int top_k, float top_p, bool sample, bool normalize_all, bool stats_tempered, int stats) -> "
      "(Tensor token, Tensor logp, Tensor logp_T, Tensor margin, Tensor entropy)");
}

MDLM_FAST_CUDA_IMPL(m) {
  m.impl("score_rows", TORCH_BOX(&score_rows));
  m.impl("score_partials", TORCH_BOX(&score_partials));
  m.impl("finish_scores", TORCH_BOX(&finish_scores));
}

}  // namespace mdlm_fast
