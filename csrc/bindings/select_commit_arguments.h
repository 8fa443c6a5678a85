// select_commit_ and remask_ as bound functions, over the kernels that run them: `Run` takes the arguments as pointers
// and the canvas, which says on what device. Values are checked where the host can read them, by `Run`.
#pragma once

#include <string>

#include "../common/select_commit_arguments.h"
#include "tensors.h"

namespace mdlm_fast {

inline constexpr const char* kSelectCommitSchema =
    "select_commit_(Tensor(a!) canvas, Tensor(b!) masked, Tensor rows, Tensor token, Tensor confidence, "
    "Tensor? logp, Tensor? logp_T, Tensor? entropy, Tensor? quota, Tensor? threshold, Tensor? gamma, "
    "Tensor? eos_ids, Tensor? row_position, Tensor? seeds, Tensor step, Tensor(c!)? commit_step, "
    "Tensor(d!)? commit_logp, Tensor(e!)? commit_logp_T, Tensor(f!)? commit_confidence, "
    "Tensor(g!)? masks_left, Tensor(h!)? done, Tensor(i!)? next_rows, Tensor(j!)? num_next_rows, "
    "str rule, str discount, float alg_temp) -> ()";
inline constexpr const char* kRemaskSchema =
    "remask_(Tensor(a!) canvas, Tensor(b!) masked, Tensor running, Tensor scope, Tensor count, int mask_id, "
    "Tensor(c!)? commit_step, Tensor(d!)? masks_left, Tensor(e!)? done) -> ()";

inline Rule parse_rule(const std::string& name) {
  if (name == "quota") return Rule::kQuota;
  if (name == "threshold") return Rule::kThreshold;
  if (name == "factor") return Rule::kFactor;
  if (name == "entropy_bound") return Rule::kEntropyBound;
  if (name == "quota_threshold") return Rule::kQuotaThreshold;
  if (name == "origin") return Rule::kOrigin;
  STD_TORCH_CHECK(false, "mdlm_fast: unknown selection rule ", name);
}

inline Discount parse_discount(const std::string& name) {
  if (name == "none") return Discount::kNone;
  if (name == "log") return Discount::kLog;
  if (name == "multiply") return Discount::kMultiply;
  STD_TORCH_CHECK(false, "mdlm_fast: unknown discount ", name);
}

template <void (*Run)(const SelectCommit&, const Tensor& canvas)>
void select_commit(Tensor canvas, Tensor masked, Tensor rows, Tensor token, Tensor confidence, OptionalTensor logp,
                   OptionalTensor logp_tempered, OptionalTensor entropy, OptionalTensor quota,
                   OptionalTensor threshold, OptionalTensor gamma, OptionalTensor eos_ids,
                   OptionalTensor row_position, OptionalTensor seeds, Tensor step, OptionalTensor commit_step,
                   OptionalTensor commit_logp, OptionalTensor commit_logp_tempered, OptionalTensor commit_confidence,
                   OptionalTensor masks_left, OptionalTensor done, OptionalTensor next_rows,
                   OptionalTensor num_next_rows, std::string rule, std::string discount, double alg_temp) {
  const int64_t num_sequences = canvas.size(0), length = canvas.size(1), capacity = rows.numel();
  const int64_t cells = num_sequences * length;
  constexpr auto f32 = ScalarType::Float;
  constexpr auto i32 = ScalarType::Int;
  constexpr auto i64 = ScalarType::Long;
  SelectCommit args{};
  args.num_sequences = num_sequences;
  args.length = length;
  args.capacity = capacity;
  args.canvas = pointer<int64_t>(canvas, i64, cells, "canvas");
  args.masked = pointer<uint8_t>(masked, ScalarType::Bool, cells, "masked");
  args.rows = pointer<int32_t>(rows, i32, capacity, "rows");
  args.token = pointer<int64_t>(token, i64, capacity, "token");
  args.confidence = pointer<float>(confidence, f32, capacity, "confidence");
  args.logp = pointer<float>(logp, f32, capacity, "logp");
  args.logp_tempered = pointer<float>(logp_tempered, f32, capacity, "logp_T");
  args.entropy = pointer<float>(entropy, f32, capacity, "entropy");
  args.quota = pointer<int32_t>(quota, i32, num_sequences, "quota");
  args.threshold = pointer<float>(threshold, f32, num_sequences, "threshold");
  args.gamma = pointer<float>(gamma, f32, num_sequences, "gamma");
  args.num_eos_ids = eos_ids ? eos_ids->numel() : 0;
  args.eos_ids = pointer<int64_t>(eos_ids, i64, args.num_eos_ids, "eos_ids");
  args.row_position = pointer<int32_t>(row_position, i32, capacity, "row_position");
  args.seeds = pointer<int64_t>(seeds, i64, num_sequences, "seeds");
  args.step_stride = step.numel() == 1 ? 0 : 1;
  args.step = pointer<int32_t>(step, i32, args.step_stride ? num_sequences : 1, "step");
  args.commit_step = pointer<int16_t>(commit_step, ScalarType::Short, cells, "commit_step");
  args.commit_logp = pointer<float>(commit_logp, f32, cells, "commit_logp");
  args.commit_logp_tempered = pointer<float>(commit_logp_tempered, f32, cells, "commit_logp_T");
  args.commit_confidence = pointer<float>(commit_confidence, f32, cells, "commit_confidence");
  args.masks_left = pointer<int32_t>(masks_left, i32, num_sequences, "masks_left");
  args.done = pointer<uint8_t>(done, ScalarType::Bool, num_sequences, "done");
  args.next_rows = pointer<int32_t>(next_rows, i32, capacity, "next_rows");
  args.num_next_rows = pointer<int32_t>(num_next_rows, i32, 1, "num_next_rows");
  args.rule = parse_rule(rule);
  args.discount = parse_discount(discount);
  args.position_temperature = alg_temp;

  // What each rule reads must be there. Asked of the tensors, not of the pointers: an empty tensor's pointer is null.
  const bool needs_quota = args.rule == Rule::kQuota || args.rule == Rule::kQuotaThreshold;
  const bool needs_random = args.rule == Rule::kOrigin || alg_temp > 0.0;
  STD_TORCH_CHECK(!needs_quota || quota, "mdlm_fast: rule ", rule, " needs quota");
  STD_TORCH_CHECK(args.rule == Rule::kQuota || threshold, "mdlm_fast: rule ", rule, " needs threshold");
  STD_TORCH_CHECK(args.rule != Rule::kEntropyBound || entropy, "mdlm_fast: rule entropy_bound needs entropy");
  STD_TORCH_CHECK(!needs_random || (seeds && row_position), "mdlm_fast: random positions need seeds and row_position");
  STD_TORCH_CHECK(args.discount == Discount::kNone || (gamma && eos_ids),
                  "mdlm_fast: discount ", discount, " needs gamma and eos_ids");
  STD_TORCH_CHECK(!commit_logp || logp, "mdlm_fast: commit_logp needs logp");
  STD_TORCH_CHECK(!commit_logp_tempered || logp_tempered, "mdlm_fast: commit_logp_T needs logp_T");
  Run(args, canvas);
}

template <void (*Run)(const Remask&, const Tensor& canvas)>
void remask(Tensor canvas, Tensor masked, Tensor running, Tensor scope, Tensor count, int64_t mask_id,
            OptionalTensor commit_step, OptionalTensor masks_left, OptionalTensor done) {
  const int64_t num_sequences = canvas.size(0), length = canvas.size(1);
  const int64_t cells = num_sequences * length;
  Remask args{};
  args.num_sequences = num_sequences;
  args.length = length;
  args.canvas = pointer<int64_t>(canvas, ScalarType::Long, cells, "canvas");
  args.masked = pointer<uint8_t>(masked, ScalarType::Bool, cells, "masked");
  args.running = pointer<float>(running, ScalarType::Float, cells, "running");
  args.scope = pointer<uint8_t>(scope, ScalarType::Bool, cells, "scope");
  args.count = pointer<int32_t>(count, ScalarType::Int, num_sequences, "count");
  args.mask_id = mask_id;
  args.commit_step = pointer<int16_t>(commit_step, ScalarType::Short, cells, "commit_step");
  args.masks_left = pointer<int32_t>(masks_left, ScalarType::Int, num_sequences, "masks_left");
  args.done = pointer<uint8_t>(done, ScalarType::Bool, num_sequences, "done");
  Run(args, canvas);
}

}  // namespace mdlm_fast
