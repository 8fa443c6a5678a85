// Global memory. Kernels read and write it through these functions alone, so that the host shim can count bytes and
// check addresses; on a device each is one instruction.
#pragma once

#include "intrinsics.cuh"

namespace mdlm_fast::cuda {

#if !defined(MDLM_FAST_SHIM)
#define MDLM_FAST_COUNT(kind, bytes, address) ((void)0)
#else
#define MDLM_FAST_COUNT(kind, bytes, address) ::mdlm_fast::shim::count_##kind(bytes, address)
#endif

// A value that other threads of this launch may have written.
template <class T>
__device__ __forceinline__ T load(const T* address) {
  MDLM_FAST_COUNT(load, sizeof(T), address);
  return *address;
}

// A value that nobody writes during the launch.
template <class T>
__device__ __forceinline__ T load_constant(const T* address) {
  MDLM_FAST_COUNT(load, sizeof(T), address);
#if !defined(MDLM_FAST_SHIM)
  if constexpr (sizeof(T) == 2 && std::is_class_v<T>)
    return {__ldg(&address->bits)};
  else
    return __ldg(address);
#else
  return *address;
#endif
}

// A value that all lanes of a warp read at once, which is one request to memory: it is counted once.
template <class T>
__device__ __forceinline__ T load_uniform(const T* address) {
#if !defined(MDLM_FAST_SHIM)
  return *address;
#else
  return threadIdx.x % 32 == 0 ? load(address) : *address;
#endif
}

template <class T>
__device__ __forceinline__ void store(T* address, T value) {
  MDLM_FAST_COUNT(store, sizeof(T), address);
  *address = value;
}

// A pointer whose sum the compiler does not take apart: constant offsets from it become part of the loads.
template <class T>
__device__ __forceinline__ const T* anchored(const T* address) {
#if !defined(MDLM_FAST_SHIM)
  asm("" : "+l"(address));
#endif
  return address;
}

// Sixteen bytes of logits.
struct alignas(16) Vector {
  std::uint32_t words[4];
};

// A vector that is read once: it does not displace what the first-level cache holds. `address` is 16-byte aligned.
__device__ __forceinline__ Vector load_vector(const void* address) {
  MDLM_FAST_COUNT(load, 16, address);
  Vector v;
#if !defined(MDLM_FAST_SHIM)
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3])
      : "l"(address));
#else
  v = *static_cast<const Vector*>(address);
#endif
  return v;
}

__device__ __forceinline__ void store_vector(void* address, Vector v) {
  MDLM_FAST_COUNT(store, 16, address);
  *static_cast<Vector*>(address) = v;
}

// Rows of [N, X] or [B, L, X] of any strides: flat row r is row r % rows_per_batch of batch r / rows_per_batch. Strides
// are in elements; columns have stride 1.
struct RowsView {
  const void* data;
  std::int64_t rows_per_batch, batch_stride, row_stride;

  template <class Element>
  __device__ __forceinline__ const Element* row(std::int32_t r) const {
    const std::int64_t batch = r / rows_per_batch;
    return static_cast<const Element*>(data) + batch * batch_stride + (r - batch * rows_per_batch) * row_stride;
  }
};

}  // namespace mdlm_fast::cuda
