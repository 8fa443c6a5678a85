// Philox4x32-10 (Salmon et al., SC 2011, doi:10.1145/2063384.2063405) and the uniforms drawn from it. Host and device.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MDLM_FAST_HOST_DEVICE __host__ __device__
#else
#define MDLM_FAST_HOST_DEVICE
#endif

namespace mdlm_fast {

// What a random number is for; two streams never share bits. The same numbers as in mdlm_fast/rng.py.
enum Stream : uint32_t { kTokenStream = 0, kRandomConfidenceStream = 1, kPositionChoiceStream = 2 };

struct PhiloxWords {
  uint32_t x0, x1, x2, x3;
};

MDLM_FAST_HOST_DEVICE inline PhiloxWords philox4x32(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(counter.x0) * 0xD2511F53u;
    const uint64_t p1 = static_cast<uint64_t>(counter.x2) * 0xCD9E8D57u;
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter.x1 ^ key0, static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter.x3 ^ key1, static_cast<uint32_t>(p0)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// A uniform in the open interval (0, 1): (k + 0.5) 2^-52 with k 52 random bits. 53 bits would let the largest round to 1.
MDLM_FAST_HOST_DEVICE inline double philox_uniform(uint64_t seed, uint32_t position, uint32_t step, uint32_t stream) {
  const PhiloxWords words = philox4x32({position, step, stream, 0}, static_cast<uint32_t>(seed),
                                       static_cast<uint32_t>(seed >> 32));
  const uint64_t bits = static_cast<uint64_t>(words.x0 >> 6) << 26 | words.x1 >> 6;
  return (static_cast<double>(bits) + 0.5) * 0x1p-52;
}

}  // namespace mdlm_fast
