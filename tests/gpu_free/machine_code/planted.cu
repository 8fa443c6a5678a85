// Kernels with known answers for the analyser of machine code. Each sums 2^(x - m) over a row of bfloat16 numbers.
#include <cstdint>

__device__ __forceinline__ float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ __forceinline__ float low(std::uint32_t word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float high(std::uint32_t word) { return __uint_as_float(word & 0xffff0000u); }

__device__ __forceinline__ float sum_pair(std::uint32_t word, float m) {
  return exp2_approx(low(word) - m) + exp2_approx(high(word) - m);
}

__device__ __forceinline__ float sum_vector(uint4 v, float m) {
  return sum_pair(v.x, m) + sum_pair(v.y, m) + sum_pair(v.z, m) + sum_pair(v.w, m);
}

// Per pass: 1 load, 8 elements; 8 shifts or masks, 8 subtractions, 8 MUFU, 8 additions, and the loop itself.
extern "C" __global__ void __launch_bounds__(256) one_vector(const uint4* row, float* out, int vectors, float m) {
  float s = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < vectors; i += 256) s += sum_vector(__ldg(row + i), m);
  out[threadIdx.x] = s;
}

// The same with four vectors a pass.
extern "C" __global__ void __launch_bounds__(256) four_vectors(const uint4* row, float* out, int vectors, float m) {
  float s = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < vectors; i += 1024)
#pragma unroll
    for (int k = 0; k < 4; ++k) s += sum_vector(__ldg(row + i + 256 * k), m);
  out[threadIdx.x] = s;
}

// The work of a vector with something large in it is no part of the hot path.
extern "C" __global__ void __launch_bounds__(256) rare_branch(const uint4* row, float* out, int vectors, float m) {
  float s = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < vectors; i += 256) {
    const uint4 v = __ldg(row + i);
    if (__builtin_expect(v.x > 0x7f000000u, 0)) {
      for (int k = 0; k < 32; ++k) out[256 + k] = __powf(low(v.x), k) / high(v.y);
      m = low(v.x);
    }
    s += sum_vector(v, m);
  }
  out[threadIdx.x] = s;
}

// A second temperature: 16 MUFU for 8 elements. `tempered` may skip them, which is no way to treat both.
extern "C" __global__ void __launch_bounds__(256)
    two_exponentials(const uint4* row, float2* out, int vectors, float m, float n, bool tempered) {
  float s = 0, t = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < vectors; i += 256) {
    const uint4 v = __ldg(row + i);
    s += sum_vector(v, m);
    if (tempered) t += sum_vector(v, n);
  }
  out[threadIdx.x] = make_float2(s, t);
}

// Two bytes at a time.
extern "C" __global__ void __launch_bounds__(256)
    scalar_loads(const std::uint16_t* row, float* out, int columns, float m) {
  float s = 0;
  for (int i = threadIdx.x; i < columns; i += 256) s += exp2_approx(low(__ldg(row + i)) - m);
  out[threadIdx.x] = s;
}

// No loop: a thread's one vector, straight through the kernel.
extern "C" __global__ void __launch_bounds__(256) straight(const uint4* row, float* out, int, float m) {
  out[threadIdx.x] = sum_vector(__ldg(row + threadIdx.x), m);
}

// A loop inside on the way of every vector.
extern "C" __global__ void __launch_bounds__(256) inner_loop(const uint4* row, float* out, int vectors, float m) {
  float s = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < vectors; i += 256) {
    const uint4 v = __ldg(row + i);
    int k = 0;
#pragma unroll 1
    do s = s * m + 1.0f;
    while (++k < vectors);
    s += sum_vector(v, m);
  }
  out[threadIdx.x] = s;
}

// 96 numbers alive in 64 registers.
extern "C" __global__ void __launch_bounds__(1024) spilling(const float* row, float* out, int columns, float m) {
  float kept[96];
#pragma unroll
  for (int k = 0; k < 96; ++k) kept[k] = row[threadIdx.x + 1024 * k];
  __syncthreads();
  for (int j = 0; j < columns; ++j)
#pragma unroll
    for (int k = 0; k < 96; ++k) kept[k] = kept[k] * m + kept[(k + 1) % 96];
#pragma unroll
  for (int k = 0; k < 96; ++k) out[threadIdx.x + 1024 * k] = kept[k];
}

// 1024 bytes of shared memory.
extern "C" __global__ void __launch_bounds__(256) through_shared_memory(const float* row, float* out) {
  __shared__ float reversed[256];
  reversed[255 - threadIdx.x] = row[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = reversed[threadIdx.x];
}
