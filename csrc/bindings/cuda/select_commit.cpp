// Binds select_commit_ and remask_ for CUDA tensors. Values are not checked, which would wait for the device: a row
// outside the canvas is ignored by the kernel.
#include "../../cuda/select_commit.h"

#include "../select_commit_arguments.h"
#include "runtime.h"

namespace mdlm_fast {
namespace {

// `bytes` of memory on the canvas's device, or nothing. It may be reused as soon as the launch is in the stream.
OptionalTensor scratch_memory(const Tensor& canvas, int64_t bytes) {
  if (bytes == 0) return std::nullopt;
  return torch::stable::new_empty(canvas, {bytes}, ScalarType::Byte);
}

void run_select_commit(const SelectCommit& args, const Tensor& canvas) {
  const DeviceScope scope(canvas);
  STD_TORCH_CHECK(args.capacity <= INT32_MAX - 2048 && args.num_sequences * args.length <= INT32_MAX,
                  "mdlm_fast: a canvas or a list of more than 2^31 rows");
  const OptionalTensor scratch = scratch_memory(canvas, cuda::select_commit_scratch_bytes(args));
  check_launch(cuda::select_commit(args, scratch ? scratch->data_ptr() : nullptr, scope.stream()), "select_commit_");
}

void run_remask(const Remask& args, const Tensor& canvas) {
  const DeviceScope scope(canvas);
  const OptionalTensor scratch = scratch_memory(canvas, cuda::remask_scratch_bytes(args));
  check_launch(cuda::remask(args, scratch ? scratch->data_ptr() : nullptr, scope.stream()), "remask_");
}

}  // namespace

MDLM_FAST_CUDA_FRAGMENT(m) {
  m.def(kSelectCommitSchema);
  m.def(kRemaskSchema);
}

MDLM_FAST_CUDA_IMPL(m) {
  m.impl("select_commit_", TORCH_BOX(&select_commit<run_select_commit>));
  m.impl("remask_", TORCH_BOX(&remask<run_remask>));
}

}  // namespace mdlm_fast
