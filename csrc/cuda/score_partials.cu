#include "score_partials.cuh"

#include <algorithm>

#include "launch.cuh"

namespace mdlm_fast::cuda {
namespace {

template <class Stored, Reading kReading, bool kMoment>
cudaError_t launch_kernel(const ScorePartialsParams& params, cudaStream_t stream) {
  const int tiles = params.source.tiles, warps = std::min(kPartialsThreads / kWarpSize, tiles);
  const dim3 grid(static_cast<unsigned>(params.source.capacity), static_cast<unsigned>((tiles + warps - 1) / warps));
  return launch(score_partials_kernel<Stored, kReading, kMoment>, {grid, warps * kWarpSize}, stream, params);
}

template <class Stored>
cudaError_t choose(const ScorePartialsParams& params, cudaStream_t stream) {
  if (!params.source.logits.aligned) return launch_kernel<Stored, Reading::kUnaligned, true>(params, stream);
  return params.moment ? launch_kernel<Stored, Reading::kAligned, true>(params, stream)
                       : launch_kernel<Stored, Reading::kAligned, false>(params, stream);
}

}  // namespace

cudaError_t score_partials(const ScorePartialsParams& params, cudaStream_t stream) {
  if (params.source.guidance.data != nullptr) return launch_kernel<AnyElement, Reading::kGuided, true>(params, stream);
  switch (params.source.type) {
    case ElementType::kFloat32: return choose<float>(params, stream);
    case ElementType::kBFloat16: return choose<bfloat16>(params, stream);
    default: return choose<float16>(params, stream);
  }
}

}  // namespace mdlm_fast::cuda
