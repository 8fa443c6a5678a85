#include "logit_gradient.cuh"

#include "launch.cuh"

namespace mdlm_fast::cuda {
namespace {

LaunchShape scores_shape(std::int64_t count) {
  return {dim3(static_cast<unsigned>((count + kGradientThreads - 1) / kGradientThreads)), kGradientThreads};
}

// Sorts the scores by row: lists of -1, then links, which prepare_scores_kernel puts in order.
cudaError_t link_scores(const LogitGradientParams& params, cudaStream_t stream) {
  const std::size_t ends = 2 * static_cast<std::size_t>(params.num_rows);
  const cudaError_t error = cudaMemsetAsync(params.lists, 0xff, ends * sizeof(std::int32_t), stream);
  if (error != cudaSuccess) return error;
  const GradientInputs& inputs = params.inputs;
  return launch(link_scores_kernel, scores_shape(inputs.count), stream, inputs.rows, inputs.count, params.num_rows,
                params.lists, params.lists + ends);
}

template <class Element>
cudaError_t launch_gradient(const LogitGradientParams& params, cudaStream_t stream) {
  constexpr int kNumbers = kNumbersPerVector<Element>, kBlock = kGradientThreads * kGradientVectors;
  const int vectors = (params.width + kNumbers - 1) / kNumbers + 1;  // one more if the row is not aligned
  const int blocks = (vectors + kBlock - 1) / kBlock;
  const dim3 grid(static_cast<unsigned>(params.num_rows * blocks));
  return launch(logit_gradient_kernel<Element>, {grid, kGradientThreads}, stream, params, blocks);
}

}  // namespace

cudaError_t logit_gradient(const LogitGradientParams& params, cudaStream_t stream) {
  cudaError_t error = params.lists != nullptr && params.num_rows > 0 ? link_scores(params, stream) : cudaSuccess;
  if (error == cudaSuccess) error = launch(prepare_scores_kernel, scores_shape(params.inputs.count), stream, params);
  if (error != cudaSuccess) return error;
  switch (params.type) {
    case ElementType::kFloat32: return launch_gradient<float>(params, stream);
    case ElementType::kBFloat16: return launch_gradient<bfloat16>(params, stream);
    default: return launch_gradient<float16>(params, stream);
  }
}

}  // namespace mdlm_fast::cuda
