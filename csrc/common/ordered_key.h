// Floating-point numbers as unsigned integers of the same order. Host and device.
#pragma once

#include <cstdint>
#include <cstring>

#include "philox.h"  // MDLM_FAST_HOST_DEVICE

namespace mdlm_fast {

// For non-NaN x and y: ordered_key(x) < ordered_key(y) exactly when x < y. Both zeros have one key.
MDLM_FAST_HOST_DEVICE inline std::uint32_t ordered_key(float x) {
  x += 0.0f;  // -0 becomes +0
  std::uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The number of a key; of the two zeros, the positive one.
MDLM_FAST_HOST_DEVICE inline float from_ordered_key(std::uint32_t key) {
  const std::uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

}  // namespace mdlm_fast
