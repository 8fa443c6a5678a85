#include "score_greedy.cuh"

#include <algorithm>

#include "launch.cuh"

namespace mdlm_fast::cuda {
namespace {

template <class Stored, Reading kReading, bool kMoment>
cudaError_t launch_kernel(const ScorePartialsParams& wanted, const FinishScoresParams& finish, cudaStream_t stream) {
  const auto kernel = score_greedy_kernel<Stored, kReading, kMoment>;
  constexpr int kWarps = kPartialsThreads / kWarpSize;
  int resident = 0;
  const cudaError_t error = count_resident_blocks(kernel, kPartialsThreads, 0, &resident);
  if (error != cudaSuccess) return error;
  const std::int64_t blocks = (wanted.source.capacity * wanted.source.tiles + kWarps - 1) / kWarps;
  LaunchShape shape{};
  shape.grid = dim3(static_cast<unsigned>(std::min<std::int64_t>(blocks, resident)));
  shape.threads = kPartialsThreads;
  shape.cooperative = true;
  return launch(kernel, shape, stream, wanted, finish);
}

template <class Stored>
cudaError_t choose(const ScorePartialsParams& wanted, const FinishScoresParams& finish, cudaStream_t stream) {
  if (!wanted.source.logits.aligned) return launch_kernel<Stored, Reading::kUnaligned, true>(wanted, finish, stream);
  return wanted.moment ? launch_kernel<Stored, Reading::kAligned, true>(wanted, finish, stream)
                       : launch_kernel<Stored, Reading::kAligned, false>(wanted, finish, stream);
}

}  // namespace

cudaError_t score_greedy(const ScorePartialsParams& wanted, const FinishScoresParams& finish, cudaStream_t stream) {
  if (wanted.source.guidance.data != nullptr)
    return launch_kernel<AnyElement, Reading::kGuided, true>(wanted, finish, stream);
  switch (wanted.source.type) {
    case ElementType::kFloat32: return choose<float>(wanted, finish, stream);
    case ElementType::kBFloat16: return choose<bfloat16>(wanted, finish, stream);
    default: return choose<float16>(wanted, finish, stream);
  }
}

}  // namespace mdlm_fast::cuda
