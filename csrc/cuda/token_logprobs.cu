#include "token_logprobs.cuh"

#include <algorithm>

#include "launch.cuh"

namespace mdlm_fast::cuda {
namespace {

constexpr int kMostWarps = 4;

template <class Stored, Reading kReading>
cudaError_t launch_records(const TokenLogprobsParams& params, cudaStream_t stream) {
  const int tiles = params.source.tiles, warps = std::min(kMostWarps, tiles);
  const dim3 grid(static_cast<unsigned>(params.source.capacity), static_cast<unsigned>((tiles + warps - 1) / warps));
  return launch(logprob_records_kernel<Stored, kReading>, {grid, warps * kWarpSize}, stream, params);
}

template <class Stored>
cudaError_t choose(const TokenLogprobsParams& params, cudaStream_t stream) {
  return params.source.logits.aligned ? launch_records<Stored, Reading::kAligned>(params, stream)
                                      : launch_records<Stored, Reading::kUnaligned>(params, stream);
}

cudaError_t records(const TokenLogprobsParams& params, cudaStream_t stream) {
  switch (params.source.type) {
    case ElementType::kFloat32: return choose<float>(params, stream);
    case ElementType::kBFloat16: return choose<bfloat16>(params, stream);
    default: return choose<float16>(params, stream);
  }
}

LaunchShape merge_shape(std::int64_t count) {
  return {dim3(static_cast<unsigned>((count + kMergeWarps - 1) / kMergeWarps)), kMergeWarps * kWarpSize};
}

}  // namespace

cudaError_t token_logprobs(const TokenLogprobsParams& params, cudaStream_t stream) {
  const cudaError_t error = records(params, stream);
  if (error != cudaSuccess) return error;
  return launch(merge_records_kernel, merge_shape(params.source.capacity), stream, params);
}

cudaError_t merge_logprobs(const MergeLogprobsParams& params, cudaStream_t stream) {
  return launch(merge_partials_kernel, merge_shape(params.count), stream, params);
}

}  // namespace mdlm_fast::cuda
