// Ranking by order-preserving integer keys, shared by committing and remasking.
#pragma once

#include <cstdint>
#include <cstring>

namespace mdlm_fast::cpu {

// Maps a float to an unsigned integer with the same order. -0.0 ties with +0.0, NaN ranks with -inf, and no float
// maps to 0, which is left to mean "not a candidate".
// Integer arithmetic without branches, so that loops over it vectorise.
inline uint32_t ranking_key(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits = (bits & 0x7fffffffu) > 0x7f800000u ? 0xff800000u : bits;
  bits = bits == 0x80000000u ? 0 : bits;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The float that a key stands for; NaN has become -inf.
inline float ranking_value(uint32_t key) {
  const uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Counts keys[0..n) >= bound: one plain loop, compiled for two instruction sets and vectorised by the compiler.
__attribute__((always_inline)) inline int64_t count_loop(const uint32_t* keys, int64_t n, uint32_t bound) {
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += keys[i] >= bound ? 1 : 0;
  return count;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) inline int64_t count_loop_avx2(const uint32_t* keys, int64_t n, uint32_t bound) {
  return count_loop(keys, n, bound);
}
#endif

inline int64_t count_at_least(const uint32_t* keys, int64_t n, uint32_t bound) {
#if defined(__x86_64__)
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  if (has_avx2) return count_loop_avx2(keys, n, bound);
#endif
  return count_loop(keys, n, bound);
}

struct TopKeys {
  uint32_t bound;                  // keys above it are all among the k largest
  int64_t ties;                    // how many of the keys equal to it are, too
};

// The k largest of n keys, 1 <= k <= number of non-zero keys, by a search over the 32 bits of the bound, as the GPU
// kernels do it: at most 33 vectorised counts whatever k is. Once exactly k keys reach the bound it need not be the
// k-th key itself: one below it separates them as well.
inline TopKeys top_keys(const uint32_t* keys, int64_t n, int64_t k) {
  uint32_t bound = 0;
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    const int64_t count = count_at_least(keys, n, bound | bit);
    if (count == k) return {(bound | bit) - 1, 0};
    if (count > k) bound |= bit;
  }
  const int64_t above = bound == UINT32_MAX ? 0 : count_at_least(keys, n, bound + 1);
  return {bound, k - above};
}

}  // namespace mdlm_fast::cpu
