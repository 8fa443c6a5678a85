#include "finish_scores.cuh"

#include "launch.cuh"

namespace mdlm_fast::cuda {
namespace {

constexpr int kMostFilterThreads = 512;

template <class Stored, Reading kReading>
cudaError_t choose(const FinishScoresParams& params, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(params.source.capacity));
  if (!needs_workspace(params)) return launch(finish_sampled_kernel<Stored, kReading>, {grid, 32}, stream, params);
  const int threads = params.source.tiles * kWarpSize < kMostFilterThreads ? params.source.tiles * kWarpSize
                                                                            : kMostFilterThreads;
  return launch(finish_filtered_kernel<Stored, kReading>, {grid, threads}, stream, params);
}

template <class Stored>
cudaError_t choose(const FinishScoresParams& params, cudaStream_t stream) {
  return params.source.guidance.data != nullptr ? choose<Stored, Reading::kGuided>(params, stream)
                                                : choose<Stored, Reading::kEither>(params, stream);
}

}  // namespace

bool needs_workspace(const FinishScoresParams& params) {
  const FinishOptions& options = params.options;
  const bool filtered = options.filtered && (options.sample || options.needs_tempered);
  return filtered || (options.needs_tempered && params.source.normalize_all && params.tempered_rest == nullptr);
}

cudaError_t finish_scores(const FinishScoresParams& params, cudaStream_t stream) {
  if (!params.options.sample && !needs_workspace(params)) {
    const dim3 grid(static_cast<unsigned>(params.source.capacity));
    return launch(finish_greedy_kernel, {grid, 32}, stream, params);
  }
  switch (params.source.type) {
    case ElementType::kFloat32: return choose<float>(params, stream);
    case ElementType::kBFloat16: return choose<bfloat16>(params, stream);
    default: return choose<float16>(params, stream);
  }
}

}  // namespace mdlm_fast::cuda
