#include "finish_scores.cuh"

#include <algorithm>

#include "launch.cuh"

namespace mdlm_fast::cuda {
namespace {

constexpr int kMostRescoreWarps = 16;

template <class Stored, Reading kReading>
cudaError_t launch_kernels(const FinishScoresParams& params, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(params.source.capacity));
  if (workspace_floats(params) > 0) {
    const int threads = std::min(kMostRescoreWarps, params.source.tiles) * kWarpSize;
    const cudaError_t error = launch(rescore_rows_kernel<Stored, kReading>, {grid, threads}, stream, params);
    if (error != cudaSuccess) return error;
  }
  return launch(finish_kernel<Stored, kReading>, {grid, kWarpSize}, stream, params);
}

}  // namespace

std::int64_t workspace_floats(const FinishScoresParams& params) {
  const FinishOptions& options = params.options;
  const bool filtered = options.filtered && (options.sample || options.needs_tempered);
  const bool unknown = options.needs_tempered && params.source.normalize_all && params.tempered_rest == nullptr;
  return filtered || unknown ? params.source.capacity * (std::int64_t{params.source.tiles} * kPartialFields + 1) : 0;
}

cudaError_t finish_scores(const FinishScoresParams& params, cudaStream_t stream) {
  if (needs_records_alone(params)) {
    const dim3 grid(static_cast<unsigned>(params.source.capacity));
    return launch(finish_greedy_kernel, {grid, kWarpSize}, stream, params);
  }
  if (params.source.guidance.data != nullptr) return launch_kernels<AnyElement, Reading::kGuided>(params, stream);
  switch (params.source.type) {
    case ElementType::kFloat32: return launch_kernels<float, Reading::kEither>(params, stream);
    case ElementType::kBFloat16: return launch_kernels<bfloat16, Reading::kEither>(params, stream);
    default: return launch_kernels<float16, Reading::kEither>(params, stream);
  }
}

}  // namespace mdlm_fast::cuda
