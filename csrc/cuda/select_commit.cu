#include "launch.cuh"
#include "remask.cuh"
#include "select_commit.cuh"

namespace mdlm_fast::cuda {
namespace {

// What a block may have of dynamic shared memory on every architecture: sm_86, 89 and 120 allow 99 KB with the static.
constexpr std::int64_t kLargestSharedBytes = 96 * 1024;

std::int64_t scratch_bytes(std::int64_t sequences, std::int64_t bytes) {
  return bytes > kLargestSharedBytes ? sequences * bytes : 0;
}

}  // namespace

std::int64_t select_commit_scratch_bytes(const SelectCommit& args) {
  return scratch_bytes(args.num_sequences, sequence_storage_bytes(args.length, args.rule));
}

std::int64_t remask_scratch_bytes(const Remask& args) {
  return scratch_bytes(args.num_sequences, args.length * static_cast<std::int64_t>(sizeof(std::uint32_t)));
}

cudaError_t select_commit(const SelectCommit& args, void* scratch, cudaStream_t stream) {
  LaunchShape shape{};
  shape.threads = kRankThreads;
  if (!scratch) shape.shared_bytes = static_cast<std::size_t>(sequence_storage_bytes(args.length, args.rule));
  int blocks = args.num_sequences > 1 ? static_cast<int>(args.num_sequences) : 1;
  if (blocks > 1 && (args.next_rows || args.num_next_rows)) {
    int resident = 0;
    const cudaError_t error = count_resident_blocks(select_commit_kernel, kRankThreads, shape.shared_bytes, &resident);
    if (error != cudaSuccess) return error;
    blocks = blocks < resident ? blocks : resident;
    shape.cooperative = blocks > 1;
  }
  shape.grid = dim3(static_cast<unsigned>(blocks));
  return launch(select_commit_kernel, shape, stream, args, static_cast<unsigned char*>(scratch));
}

cudaError_t remask(const Remask& args, void* scratch, cudaStream_t stream) {
  LaunchShape shape{};
  shape.grid = dim3(static_cast<unsigned>(args.num_sequences));
  shape.threads = kRankThreads;
  if (!scratch) shape.shared_bytes = static_cast<std::size_t>(args.length) * sizeof(std::uint32_t);
  return launch(remask_kernel, shape, stream, args, static_cast<std::uint32_t*>(scratch));
}

}  // namespace mdlm_fast::cuda
