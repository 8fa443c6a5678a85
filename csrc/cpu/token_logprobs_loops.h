// The loops of token_logprobs_kernels.h: plain C++ that the compiler vectorises for each instruction set. Without
// contraction into fused operations every set gives the same bits.
#pragma once

#include "token_logprobs_kernels.h"

namespace mdlm_fast::MDLM_ISA {
namespace {

using cpu::GradientKernels;
using cpu::GradientLoop;

void subtract(const GradientLoop& loop, float* __restrict gradient) {
  const float* __restrict weight = loop.weight;
  const float factor = loop.factor, grad = loop.grad_logp;
  for (int i = 0; i < loop.columns; ++i) gradient[i] -= grad * (weight[i] * factor);
}

void subtract_with_entropy(const GradientLoop& loop, float* __restrict gradient) {
  const float* __restrict weight = loop.weight;
  const float* __restrict z = loop.z;
  const GradientLoop c = loop;
  const float offset = c.log_factor + c.entropy;
  for (int i = 0; i < c.columns; ++i) {
    const float p = weight[i] * c.factor;
    // A column of weight 0 may hold -inf; p log p is then 0.
    const float log_ratio = (weight[i] > 0.0f ? z[i] - c.center : 0.0f) * c.inverse_temperature + offset;
    gradient[i] -= p * (c.grad_logp + c.grad_entropy * log_ratio);
  }
}

void narrow_float32(const float* values, int columns, void* out) {
  __builtin_memcpy(out, values, sizeof(float) * static_cast<std::size_t>(columns));
}

inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}

void narrow_bfloat16(const float* __restrict values, int columns, void* out) {
  std::uint16_t* __restrict to = static_cast<std::uint16_t*>(out);
  for (int i = 0; i < columns; ++i) {
    const std::uint32_t bits = bits_of(values[i]);
    const std::uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    to[i] = static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
  }
}

void narrow_float16(const float* __restrict values, int columns, void* out) {
  std::uint16_t* __restrict to = static_cast<std::uint16_t*>(out);
  for (int i = 0; i < columns; ++i) {
    const std::uint32_t bits = bits_of(values[i]), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
    // Normal: drop 13 bits of the mantissa to nearest even and move the exponent bias from 127 to 15.
    const std::uint32_t normal = (rest + 0xfffu + (rest >> 13 & 1u) - (112u << 23)) >> 13;
    // Below 2^-14: adding 1/2 leaves the multiple of 2^-24 in the low bits, rounded by the addition.
    float magnitude;
    __builtin_memcpy(&magnitude, &rest, 4);
    const std::uint32_t subnormal = bits_of(magnitude + 0.5f) - 0x3f000000u;
    std::uint32_t half = rest < 0x38800000u ? subnormal : normal;
    half = rest >= 0x477ff000u ? 0x7c00u : half;  // 65520 and above round to infinity
    half = rest > 0x7f800000u ? 0x7e00u : half;
    to[i] = static_cast<std::uint16_t>(sign | half);
  }
}

constexpr GradientKernels make_gradient_kernels() {
  return {subtract, subtract_with_entropy, {narrow_float32, narrow_bfloat16, narrow_float16}};
}

}  // namespace
}  // namespace mdlm_fast::MDLM_ISA
