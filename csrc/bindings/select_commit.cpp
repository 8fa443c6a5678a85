// Binds select_commit_ and remask_ for CPU tensors. Shapes and dtypes were checked by mdlm_fast.ops; what is checked
// here is only what would let a kernel leave its buffers.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>

#include "../cpu/select_commit.h"

namespace mdlm_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

void require(const Tensor& tensor, ScalarType dtype, int64_t numel, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, "mdlm_fast: ", name, " has an unexpected dtype");
  STD_TORCH_CHECK(tensor.is_contiguous(), "mdlm_fast: ", name, " must be contiguous");
  STD_TORCH_CHECK(tensor.numel() == numel, "mdlm_fast: ", name, " has ", tensor.numel(), " elements, expected ", numel);
}

// Pointers go through data_ptr(): const_data_ptr<T> and mutable_data_ptr<T> do not cover every dtype used here.
template <class T>
T* pointer(const Tensor& tensor, ScalarType dtype, int64_t numel, const char* name) {
  require(tensor, dtype, numel, name);
  return static_cast<T*>(tensor.data_ptr());
}

template <class T>
T* pointer(const OptionalTensor& tensor, ScalarType dtype, int64_t numel, const char* name) {
  return tensor ? pointer<T>(*tensor, dtype, numel, name) : nullptr;
}

cpu::Rule parse_rule(const std::string& name) {
  if (name == "quota") return cpu::Rule::kQuota;
  if (name == "threshold") return cpu::Rule::kThreshold;
  if (name == "factor") return cpu::Rule::kFactor;
  if (name == "entropy_bound") return cpu::Rule::kEntropyBound;
  if (name == "quota_threshold") return cpu::Rule::kQuotaThreshold;
  if (name == "origin") return cpu::Rule::kOrigin;
  STD_TORCH_CHECK(false, "mdlm_fast: unknown selection rule ", name);
}

cpu::Discount parse_discount(const std::string& name) {
  if (name == "none") return cpu::Discount::kNone;
  if (name == "log") return cpu::Discount::kLog;
  if (name == "multiply") return cpu::Discount::kMultiply;
  STD_TORCH_CHECK(false, "mdlm_fast: unknown discount ", name);
}

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
  cpu::SelectCommit args{};
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
  args.position_temperature = static_cast<float>(alg_temp);

  // What each rule reads must be there. Asked of the tensors, not of the pointers: an empty tensor's pointer is null.
  const bool needs_quota = args.rule == cpu::Rule::kQuota || args.rule == cpu::Rule::kQuotaThreshold;
  const bool needs_random = args.rule == cpu::Rule::kOrigin || alg_temp > 0.0;
  STD_TORCH_CHECK(!needs_quota || quota, "mdlm_fast: rule ", rule, " needs quota");
  STD_TORCH_CHECK(args.rule == cpu::Rule::kQuota || threshold, "mdlm_fast: rule ", rule, " needs threshold");
  STD_TORCH_CHECK(args.rule != cpu::Rule::kEntropyBound || entropy, "mdlm_fast: rule entropy_bound needs entropy");
  STD_TORCH_CHECK(!needs_random || (seeds && row_position), "mdlm_fast: random positions need seeds and row_position");
  STD_TORCH_CHECK(args.discount == cpu::Discount::kNone || (gamma && eos_ids),
                  "mdlm_fast: discount ", discount, " needs gamma and eos_ids");
  STD_TORCH_CHECK(!commit_logp || logp, "mdlm_fast: commit_logp needs logp");
  STD_TORCH_CHECK(!commit_logp_tempered || logp_tempered, "mdlm_fast: commit_logp_T needs logp_T");
  const cpu::SequenceSlots groups = cpu::group_by_sequence(args);
  STD_TORCH_CHECK(groups.largest_row < cells, "mdlm_fast: rows holds ", groups.largest_row, ", outside a canvas of ",
                  cells, " positions");
  torch::stable::parallel_for(0, num_sequences, 8, [&](int64_t begin, int64_t end) {
    cpu::select_commit_sequences(args, groups, begin, end);
  });
  cpu::write_next_rows(args);
}

void remask(Tensor canvas, Tensor masked, Tensor running, Tensor scope, Tensor count, int64_t mask_id,
            OptionalTensor commit_step, OptionalTensor masks_left, OptionalTensor done) {
  const int64_t num_sequences = canvas.size(0), length = canvas.size(1);
  const int64_t cells = num_sequences * length;
  cpu::Remask args{};
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
  torch::stable::parallel_for(0, num_sequences, 8, [&](int64_t begin, int64_t end) {
    cpu::remask_sequences(args, begin, end);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mdlm_fast_cpp, m) {
  m.def(
      "select_commit_(Tensor(a!) canvas, Tensor(b!) masked, Tensor rows, Tensor token, Tensor confidence, "
      "Tensor? logp, Tensor? logp_T, Tensor? entropy, Tensor? quota, Tensor? threshold, Tensor? gamma, "
      "Tensor? eos_ids, Tensor? row_position, Tensor? seeds, Tensor step, Tensor(c!)? commit_step, "
      "Tensor(d!)? commit_logp, Tensor(e!)? commit_logp_T, Tensor(f!)? commit_confidence, "
      "Tensor(g!)? masks_left, Tensor(h!)? done, Tensor(i!)? next_rows, Tensor(j!)? num_next_rows, "
      "str rule, str discount, float alg_temp) -> ()");
  m.def(
      "remask_(Tensor(a!) canvas, Tensor(b!) masked, Tensor running, Tensor scope, Tensor count, int mask_id, "
      "Tensor(c!)? commit_step, Tensor(d!)? masks_left, Tensor(e!)? done) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(mdlm_fast_cpp, CPU, m) {
  m.impl("select_commit_", TORCH_BOX(&select_commit));
  m.impl("remask_", TORCH_BOX(&remask));
}

}  // namespace mdlm_fast
