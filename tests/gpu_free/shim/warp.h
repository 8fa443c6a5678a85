// Operations of a warp. Each waits for the lanes that its mask names, and all of them must be at the same operation
// with the same mask on the same source line.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "report.h"

namespace mdlm_fast::shim {

// What a lane brings and what it gets.
struct WarpLane {
  std::uint64_t value;
  int argument;  // of a shuffle: source lane, distance or mask of lane bits
  int width;     // of a shuffle: lanes of a segment
  std::uint64_t result;
};

// Fills in the results of the lanes in `mask` (of 32; the others hold nothing).
using WarpOperation = void (*)(WarpLane* const* lanes, std::uint32_t mask);

std::uint64_t warp_exchange(const char* name, WarpOperation operation, std::uint32_t mask, std::uint64_t value,
                            int argument, int width, const Where& where);

// warp.cpp. A lane that shuffles from a lane outside the mask gets bits that differ from schedule to schedule.
void exchange_nothing(WarpLane* const* lanes, std::uint32_t mask);
void shuffle_index(WarpLane* const* lanes, std::uint32_t mask);
void shuffle_up(WarpLane* const* lanes, std::uint32_t mask);
void shuffle_down(WarpLane* const* lanes, std::uint32_t mask);
void shuffle_xor(WarpLane* const* lanes, std::uint32_t mask);
void ballot(WarpLane* const* lanes, std::uint32_t mask);
void match_any(WarpLane* const* lanes, std::uint32_t mask);

template <class T>
std::uint64_t bits_of(T value) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T from_bits(std::uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// Combines the values of all lanes; every lane gets the result.
template <class T, class Combine>
MDLM_FAST_SHIM_UNWATCHED void reduce(WarpLane* const* lanes, std::uint32_t mask) {
  T total{};
  bool first = true;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const T value = from_bits<T>(lanes[lane]->value);
    total = first ? value : Combine{}(total, value);
    first = false;
  }
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) lanes[lane]->result = bits_of(total);
}

}  // namespace mdlm_fast::shim

#define MDLM_FAST_SHIM_WHERE const mdlm_fast::shim::Where& where = mdlm_fast::shim::Where::current()

#define MDLM_FAST_SHIM_SHUFFLE(name, operation, argument_type)                                                    \
  template <class T>                                                                                              \
  T name(unsigned mask, T value, argument_type argument, int width = 32, MDLM_FAST_SHIM_WHERE) {                  \
    return mdlm_fast::shim::from_bits<T>(mdlm_fast::shim::warp_exchange(#name, mdlm_fast::shim::operation, mask,  \
                                                                        mdlm_fast::shim::bits_of(value),          \
                                                                        static_cast<int>(argument), width, where)); \
  }
MDLM_FAST_SHIM_SHUFFLE(__shfl_sync, shuffle_index, int)
MDLM_FAST_SHIM_SHUFFLE(__shfl_up_sync, shuffle_up, unsigned)
MDLM_FAST_SHIM_SHUFFLE(__shfl_down_sync, shuffle_down, unsigned)
MDLM_FAST_SHIM_SHUFFLE(__shfl_xor_sync, shuffle_xor, int)
#undef MDLM_FAST_SHIM_SHUFFLE

inline void __syncwarp(unsigned mask = 0xffffffffu, MDLM_FAST_SHIM_WHERE) {
  mdlm_fast::shim::warp_exchange("__syncwarp", mdlm_fast::shim::exchange_nothing, mask, 0, 0, 32, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, MDLM_FAST_SHIM_WHERE) {
  return static_cast<unsigned>(mdlm_fast::shim::warp_exchange("__ballot_sync", mdlm_fast::shim::ballot, mask,
                                                              predicate != 0, 0, 32, where));
}

inline int __any_sync(unsigned mask, int predicate, MDLM_FAST_SHIM_WHERE) {
  return mdlm_fast::shim::warp_exchange("__any_sync", mdlm_fast::shim::ballot, mask, predicate != 0, 0, 32, where) != 0;
}

inline int __all_sync(unsigned mask, int predicate, MDLM_FAST_SHIM_WHERE) {
  return mdlm_fast::shim::warp_exchange("__all_sync", mdlm_fast::shim::ballot, mask, predicate == 0, 0, 32, where) == 0;
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value, MDLM_FAST_SHIM_WHERE) {
  return static_cast<unsigned>(mdlm_fast::shim::warp_exchange("__match_any_sync", mdlm_fast::shim::match_any, mask,
                                                              mdlm_fast::shim::bits_of(value), 0, 32, where));
}

#define MDLM_FAST_SHIM_REDUCE(name, T, expression)                                                           \
  inline T name(unsigned mask, T value, MDLM_FAST_SHIM_WHERE) {                                              \
    using Combine = decltype([](T a, T b) -> T { return expression; });                                      \
    return mdlm_fast::shim::from_bits<T>(mdlm_fast::shim::warp_exchange(                                     \
        #name, mdlm_fast::shim::reduce<T, Combine>, mask, mdlm_fast::shim::bits_of(value), 0, 32, where));   \
  }
MDLM_FAST_SHIM_REDUCE(__reduce_add_sync, unsigned, a + b)
MDLM_FAST_SHIM_REDUCE(__reduce_add_sync, int, static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)))
MDLM_FAST_SHIM_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
MDLM_FAST_SHIM_REDUCE(__reduce_min_sync, int, a < b ? a : b)
MDLM_FAST_SHIM_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
MDLM_FAST_SHIM_REDUCE(__reduce_max_sync, int, a > b ? a : b)
MDLM_FAST_SHIM_REDUCE(__reduce_and_sync, unsigned, a & b)
MDLM_FAST_SHIM_REDUCE(__reduce_or_sync, unsigned, a | b)
MDLM_FAST_SHIM_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef MDLM_FAST_SHIM_REDUCE
#undef MDLM_FAST_SHIM_WHERE
