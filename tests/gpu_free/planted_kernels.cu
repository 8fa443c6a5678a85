// Small kernels that test the host shim: right ones, and wrong ones with one mistake each. test_shim.py runs them.
#include <cstdint>
#include <cstring>

#include "cuda/launch.cuh"
#include "cuda/memory.cuh"
#include "cuda/shared.cuh"

namespace mdlm_fast::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kBlocks = 6;

// What every kernel gets: in [n], out [n] (what block b writes begins at b * kThreads, unless said otherwise), and a
// counter that starts at zero.
struct Arrays {
  const float* in;
  float* out;
  unsigned* counter;
  int n;
};

__device__ float my_value(const Arrays& a) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  return i < a.n ? load(a.in + i) : 0.0f;
}

__device__ void put(const Arrays& a, float value) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i < a.n) store(a.out + i, value);
}

__device__ float warp_sum(float x) {
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kFullWarp, x, distance);
  return x;
}

// Right ones ------------------------------------------------------------------------------------------------------

// Every out of a block is the block's sum.
__global__ void block_sum(Arrays a) {
  __shared__ float sums[kWarps];
  const float sum = warp_sum(my_value(a));
  if (threadIdx.x % kWarpSize == 0) sums[threadIdx.x / kWarpSize] = sum;
  __syncthreads();
  float total = 0;
  for (const float x : sums) total += x;
  put(a, total);
}

// Prefix sums within each warp.
__global__ void warp_scan(Arrays a) {
  const unsigned lane = threadIdx.x % kWarpSize;
  float sum = my_value(a);
  for (unsigned distance = 1; distance < kWarpSize; distance *= 2) {
    const float before = __shfl_up_sync(kFullWarp, sum, distance);
    if (lane >= distance) sum += before;
  }
  put(a, sum);
}

// The positive numbers of all blocks, in order, and zeros behind them.
__global__ void compaction(Arrays a, unsigned* block_counts) {
  unsigned* warp_counts = shared_memory<unsigned>();  // [kWarps + 1]
  __shared__ unsigned first;
  const unsigned lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const float value = my_value(a);
  const unsigned votes = __ballot_sync(kFullWarp, value > 0);
  if (lane == 0) warp_counts[warp] = static_cast<unsigned>(__popc(votes));
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned total = 0;
    for (int w = 0; w < kWarps; ++w) total += warp_counts[w];
    store(block_counts + blockIdx.x, total);
  }
  put(a, 0.0f);
  grid_barrier();
  if (threadIdx.x == 0) {
    first = 0;
    for (unsigned b = 0; b < blockIdx.x; ++b) first += load(block_counts + b);
  }
  __syncthreads();
  unsigned place = first + static_cast<unsigned>(__popc(votes & ((1u << lane) - 1)));
  for (unsigned w = 0; w < warp; ++w) place += warp_counts[w];
  if (value > 0) store(a.out + place, value);
}

// Pairs of lanes work apart, each with a mask of its own; every lane gets the sum of its pair.
__global__ void pairs(Arrays a) {
  const unsigned lane = threadIdx.x % kWarpSize, mask = 3u << (lane & ~1u);
  float sum = my_value(a);
  if (lane % 4 < 2)
    sum += __shfl_xor_sync(mask, sum, 1);
  else
    sum += __shfl_sync(mask, sum, static_cast<int>(lane ^ 1));
  put(a, sum);
}

// How many numbers are positive, counted by one atomic a block.
__global__ void count_positive(Arrays a) {
  const int count = __syncthreads_count(my_value(a) > 0);
  if (threadIdx.x == 0) atomicAdd(a.counter, static_cast<unsigned>(count));
}

// Threads that write the same value to the same place.
__global__ void same_value(Arrays a) {
  __shared__ int positive;
  if (threadIdx.x == 0) positive = 0;
  __syncthreads();
  if (my_value(a) > 0) positive = 1;
  __syncthreads();
  put(a, static_cast<float>(positive));
}

// Wrong ones that give different bits under different schedules -------------------------------------------------------

__global__ void missing_barrier(Arrays a) {
  __shared__ float sums[kWarps];
  const float sum = warp_sum(my_value(a));
  if (threadIdx.x % kWarpSize == 0) sums[threadIdx.x / kWarpSize] = sum;
  float total = 0;
  for (const float x : sums) total += x;
  put(a, total);
}

__global__ void missing_barrier_before_reuse(Arrays a) {
  float* values = shared_memory<float>();  // [kThreads]
  values[threadIdx.x] = my_value(a);
  __syncthreads();
  const float other = values[kThreads - 1 - threadIdx.x];
  values[threadIdx.x] = 2 * other;
  __syncthreads();
  put(a, values[kThreads - 1 - threadIdx.x]);
}

__global__ void missing_syncwarp(Arrays a) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = my_value(a);
  put(a, values[threadIdx.x ^ 1]);
}

__global__ void missing_grid_barrier(Arrays a) {
  if (threadIdx.x == 0) atomicAdd(a.counter, 1u);
  __syncthreads();
  put(a, static_cast<float>(load(a.counter)));
}

__global__ void uninitialised_dynamic(Arrays a) {
  float* values = shared_memory<float>();  // [kThreads]
  if (threadIdx.x > 0) values[threadIdx.x] = my_value(a);
  __syncthreads();
  put(a, values[kThreads - 1 - threadIdx.x]);
}

__global__ void uninitialised_static(Arrays a) {
  __shared__ unsigned total;
  atomicAdd(&total, 1u);
  __syncthreads();
  put(a, static_cast<float>(total % 65536));
}

__global__ void shuffle_from_outside_the_mask(Arrays a) {
  float value = my_value(a);
  if (threadIdx.x % kWarpSize < 16) value = __shfl_down_sync(0xffffu, value, 8);
  put(a, value);
}

__global__ void order_of_blocks(Arrays a) {
  __shared__ unsigned turn;
  if (threadIdx.x == 0) turn = atomicAdd(a.counter, 1u);
  __syncthreads();
  put(a, static_cast<float>(turn));
}

// Wrong ones that give the same bits here under every schedule --------------------------------------------------------

__global__ void lost_updates(Arrays a) {
  __shared__ float total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  total += my_value(a);
  __syncthreads();
  put(a, total);
}

// Within a warp; the last write wins.
__global__ void last_write(Arrays a) {
  __shared__ float last;
  if (threadIdx.x < kWarpSize) last = my_value(a) * static_cast<float>(threadIdx.x);
  __syncthreads();
  put(a, last);
}

__global__ void lost_updates_between_blocks(Arrays a) {
  if (threadIdx.x == 0) store(a.counter, load(a.counter) + 1);
}

__global__ void read_while_others_add(Arrays a) {
  __shared__ unsigned total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  atomicAdd(&total, 1u);
  put(a, total > 0 ? 1.0f : 0.0f);
}

// Wrong ones that are reported ----------------------------------------------------------------------------------------

__global__ void divergent_barrier(Arrays a) {
  if (threadIdx.x < kThreads / 2) __syncthreads();
  put(a, __syncthreads_or(my_value(a) > 0) ? 1.0f : 0.0f);
}

__global__ void early_exit(Arrays a) {
  if (threadIdx.x >= kThreads - 8) return;
  __syncthreads();
  put(a, my_value(a));
}

__global__ void mask_without_the_caller(Arrays a) { put(a, __shfl_down_sync(0x7fffffffu, my_value(a), 1)); }

__global__ void mask_of_absent_lanes(Arrays a) {
  float value = my_value(a);
  if (threadIdx.x % kWarpSize < 16) value = warp_sum(value);
  put(a, value);
}

__global__ void mask_of_returned_lanes(Arrays a) {
  if (threadIdx.x % kWarpSize >= 30) return;
  put(a, warp_sum(my_value(a)));
}

__global__ void mask_beyond_the_block(Arrays a) { put(a, warp_sum(my_value(a))); }

__global__ void different_operations(Arrays a) {
  float value = my_value(a);
  if (threadIdx.x % 2 == 0)
    value = static_cast<float>(__ballot_sync(kFullWarp, value > 0));
  else
    value = static_cast<float>(__any_sync(kFullWarp, value > 0));
  put(a, value);
}

__global__ void write_past_shared_memory(Arrays a) {
  float* values = shared_memory<float>();  // [kThreads]
  values[threadIdx.x + 1] = my_value(a);
}

__global__ void write_before_shared_memory(Arrays a) {
  float* values = shared_memory<float>();  // [kThreads]
  values[static_cast<int>(threadIdx.x) - 1] = my_value(a);
}

__global__ void misaligned_vector(Arrays a) { put(a, as_float(load_vector(a.in + threadIdx.x % 2).words[0])); }

__global__ void null_pointer(Arrays a) { put(a, load(static_cast<const float*>(nullptr))); }

__global__ void grid_barrier_alone(Arrays a) {
  grid_barrier();
  put(a, 1.0f);
}

__global__ void grid_barrier_of_some(Arrays a) {
  if (blockIdx.x == 2) return;
  grid_barrier();
  put(a, 1.0f);
}

// Wrong ones that the sanitizers see ----------------------------------------------------------------------------------

__global__ void vector_past_the_end(Arrays a) {
  const int first = static_cast<int>(threadIdx.x) * 4;
  if (first < a.n) store(a.out + first, as_float(load_vector(a.in + first).words[3]));  // n is no multiple of 4
}

__global__ void read_past_shared_memory(Arrays a) { put(a, shared_memory<float>()[threadIdx.x + 1]); }

__global__ void index_past_static_array(Arrays a) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = 1.0f;
  __syncthreads();
  put(a, values[threadIdx.x + static_cast<unsigned>(a.n > 0)]);
}

}  // namespace
}  // namespace mdlm_fast::cuda

using namespace mdlm_fast::cuda;

// Runs a kernel by its name. Returns what went wrong, or null. in, out: float [n]; counter: zero.
extern "C" __attribute__((visibility("default"))) const char* run_kernel(const char* name, const float* in, float* out,
                                                                         std::uint32_t* counter, int n) {
  const Arrays arrays{in, out, counter, n};
  const auto is = [&](const char* other) { return std::strcmp(name, other) == 0; };
  const LaunchShape plain{dim3(kBlocks), kThreads, kThreads * sizeof(float)};
  LaunchShape one = plain, narrow = plain, cooperative = plain, huge = plain;
  one.grid = dim3(1);
  narrow.threads = 48;
  cooperative.cooperative = huge.cooperative = true;
  huge.grid = dim3(100000);
  cudaError_t error = cudaErrorInvalidValue;
#define RUN(kernel, shape) \
  if (is(#kernel)) error = launch(kernel, shape, nullptr, arrays)
  if (is("compaction")) {
    std::uint32_t block_counts[kBlocks];
    error = launch(compaction, cooperative, nullptr, arrays, static_cast<unsigned*>(block_counts));
  }
  RUN(block_sum, plain);
  RUN(warp_scan, plain);
  RUN(pairs, plain);
  RUN(count_positive, plain);
  RUN(same_value, plain);
  RUN(missing_barrier, plain);
  RUN(missing_barrier_before_reuse, plain);
  RUN(missing_syncwarp, plain);
  RUN(missing_grid_barrier, cooperative);
  RUN(uninitialised_dynamic, plain);
  RUN(uninitialised_static, plain);
  RUN(shuffle_from_outside_the_mask, plain);
  RUN(order_of_blocks, plain);
  RUN(lost_updates, plain);
  RUN(last_write, plain);
  RUN(lost_updates_between_blocks, plain);
  RUN(read_while_others_add, plain);
  RUN(divergent_barrier, plain);
  RUN(early_exit, plain);
  RUN(mask_without_the_caller, plain);
  RUN(mask_of_absent_lanes, plain);
  RUN(mask_of_returned_lanes, plain);
  RUN(mask_beyond_the_block, narrow);
  RUN(different_operations, plain);
  RUN(write_past_shared_memory, plain);
  RUN(write_before_shared_memory, plain);
  RUN(misaligned_vector, plain);
  RUN(null_pointer, plain);
  RUN(grid_barrier_alone, plain);
  RUN(grid_barrier_of_some, cooperative);
  RUN(vector_past_the_end, one);
  RUN(read_past_shared_memory, one);
  RUN(index_past_static_array, one);
#undef RUN
  if (is("too_many_blocks")) error = launch(grid_barrier_alone, huge, nullptr, arrays);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
