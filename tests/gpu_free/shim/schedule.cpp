#include <algorithm>
#include <cstring>
#include <numeric>

#include "threads.h"

namespace mdlm_fast::shim {

std::size_t Schedule::choose(const std::vector<std::size_t>& candidates, std::size_t last) {
  switch (order) {
    case Order::kForward: return candidates.front();
    case Order::kReverse: return candidates.back();
    case Order::kRandom: break;
  }
  if (one_in(2) && std::find(candidates.begin(), candidates.end(), last) != candidates.end()) return last;
  return candidates[random_() % candidates.size()];
}

// Forward: NaNs and -1. Reverse: large numbers. Random: anything.
void Schedule::fill(void* memory, std::size_t bytes) {
  switch (order) {
    case Order::kForward: std::memset(memory, 0xff, bytes); return;
    case Order::kReverse: std::memset(memory, 0x7a, bytes); return;
    case Order::kRandom: break;
  }
  auto* to = static_cast<unsigned char*>(memory);
  for (std::size_t i = 0; i < bytes; i += 8) {
    const std::uint64_t word = random_();
    std::memcpy(to + i, &word, std::min<std::size_t>(8, bytes - i));
  }
}

std::vector<std::size_t> Schedule::order_of(std::size_t count) {
  std::vector<std::size_t> places(count);
  std::iota(places.begin(), places.end(), std::size_t{0});
  if (order == Order::kReverse) std::reverse(places.begin(), places.end());
  if (order == Order::kRandom) std::shuffle(places.begin(), places.end(), random_);
  return places;
}

}  // namespace mdlm_fast::shim
