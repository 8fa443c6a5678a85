// Single instructions that C++ cannot name, each with what it means for the host shim beside it, and the three storage
// types of logits.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "platform.cuh"
#if !defined(MDLM_FAST_SHIM)
#include <cuda_fp16.h>
#endif

namespace mdlm_fast::cuda {

// Storage types. Arithmetic is in float; the types only say how bits are read.
struct bfloat16 {
  std::uint16_t bits;
};
struct float16 {
  std::uint16_t bits;
};

inline constexpr float kInfinity = __builtin_inff();
inline constexpr float kLargest = 0x1.fffffep127f;
inline constexpr float kLog2E = 0x1.715476p+0f;
inline constexpr float kLog2ELost = 0x1.4ae0cp-26f;  // log2(e) - kLog2E
inline constexpr float kLn2 = 0x1.62e43p-1f;

__device__ __forceinline__ float as_float(std::uint32_t bits) {
#if !defined(MDLM_FAST_SHIM)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
#endif
}

__device__ __forceinline__ std::uint32_t as_bits(float value) {
#if !defined(MDLM_FAST_SHIM)
  return __float_as_uint(value);
#else
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
#endif
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bfloat16 x) { return as_float(static_cast<std::uint32_t>(x.bits) << 16); }
__device__ __forceinline__ float widen(float16 x) {
#if !defined(MDLM_FAST_SHIM)
  return __half2float(__ushort_as_half(x.bits));
#else
  _Float16 value;
  std::memcpy(&value, &x.bits, 2);
  return static_cast<float>(value);
#endif
}

// Round to nearest, ties to even; NaN stays NaN.
template <class Element>
__device__ __forceinline__ Element narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bfloat16 narrow<bfloat16>(float x) {
  const std::uint32_t bits = as_bits(x);
  const std::uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return {static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
}
template <>
__device__ __forceinline__ float16 narrow<float16>(float x) {
#if !defined(MDLM_FAST_SHIM)
  return {__half_as_ushort(__float2half_rn(x))};
#else
  const _Float16 value = static_cast<_Float16>(x);
  float16 result;
  std::memcpy(&result.bits, &value, 2);
  return result;
#endif
}

// Two numbers of a 16-bit type in one word, the first in the low half; rounded as by narrow, NaN stays NaN.
template <class Element>
__device__ __forceinline__ std::uint32_t narrow_pair(float first, float second) {
#if !defined(MDLM_FAST_SHIM)
  std::uint32_t result;
  if constexpr (std::is_same_v<Element, bfloat16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(second), "f"(first));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(second), "f"(first));
  return result;
#else
  return narrow<Element>(first).bits | static_cast<std::uint32_t>(narrow<Element>(second).bits) << 16;
#endif
}

// The same number, which the compiler takes for a new one each time: what is computed from it inside a loop stays there.
__device__ __forceinline__ int renewed(int x) {
#if !defined(MDLM_FAST_SHIM)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// 2^x with a relative error of 2^-22 or less; 2^-inf is 0, and so is 2^kLeastExponent.
inline constexpr float kLeastExponent = -200.0f;
__device__ __forceinline__ float exp2_approx(float x) {
#if !defined(MDLM_FAST_SHIM)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return std::exp2(x);
#endif
}

// A product that is rounded before anything is added to it: never part of a fused multiply-add.
__device__ __forceinline__ float rounded_product(float a, float b) {
#if !defined(MDLM_FAST_SHIM)
  return __fmul_rn(a, b);
#else
  return a * b;  // the shim's flags contract nothing
#endif
}

// The larger of two numbers; NaN if either is NaN.
__device__ __forceinline__ float max_nan(float a, float b) {
#if !defined(MDLM_FAST_SHIM)
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a != a || b != b ? as_float(0x7fffffffu) : a > b ? a : b;
#endif
}

// The same for two numbers in each of the operands, the first in the low half.
template <class Element>
__device__ __forceinline__ std::uint32_t max_nan_pair(std::uint32_t a, std::uint32_t b) {
#if !defined(MDLM_FAST_SHIM)
  std::uint32_t result;
  if constexpr (sizeof(Element) == 2 && std::is_same_v<Element, bfloat16>)
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  else
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
#else
  std::uint32_t result = 0;
  for (int half = 0; half < 2; ++half) {
    const Element x{static_cast<std::uint16_t>(a >> 16 * half)}, y{static_cast<std::uint16_t>(b >> 16 * half)};
    const float larger = max_nan(widen(x), widen(y));
    result |= static_cast<std::uint32_t>(larger != larger ? 0x7fffu : narrow<Element>(larger).bits) << 16 * half;
  }
  return result;
#endif
}

// The smaller of two numbers in each half; a NaN is ignored where the other is a number.
template <class Element>
__device__ __forceinline__ std::uint32_t min_pair(std::uint32_t a, std::uint32_t b) {
#if !defined(MDLM_FAST_SHIM)
  std::uint32_t result;
  if constexpr (std::is_same_v<Element, bfloat16>)
    asm("min.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  else
    asm("min.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
#else
  std::uint32_t result = 0;
  for (int half = 0; half < 2; ++half) {
    const Element x{static_cast<std::uint16_t>(a >> 16 * half)}, y{static_cast<std::uint16_t>(b >> 16 * half)};
    const float p = widen(x), q = widen(y), smaller = p != p ? q : q != q ? p : p < q ? p : q;
    result |= static_cast<std::uint32_t>(narrow<Element>(smaller).bits) << 16 * half;
  }
  return result;
#endif
}

}  // namespace mdlm_fast::cuda
