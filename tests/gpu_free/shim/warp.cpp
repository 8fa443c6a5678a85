#include "warp.h"

#include <cstdio>

#include "threads.h"

namespace mdlm_fast::shim {

namespace {

// Source(lane, argument, width) is the lane that `lane` reads.
template <class Source>
void shuffle(WarpLane* const* lanes, std::uint32_t mask, Source source) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const int from = source(lane, lanes[lane]->argument, lanes[lane]->width);
    if (mask >> from & 1)
      lanes[lane]->result = lanes[from]->value;
    else
      schedule.fill(&lanes[lane]->result, sizeof(std::uint64_t));
  }
}

}  // namespace

void exchange_nothing(WarpLane* const*, std::uint32_t) {}

void shuffle_index(WarpLane* const* lanes, std::uint32_t mask) {
  shuffle(lanes, mask, [](int lane, int index, int width) { return (lane & ~(width - 1)) | (index & (width - 1)); });
}

void shuffle_up(WarpLane* const* lanes, std::uint32_t mask) {
  shuffle(lanes, mask, [](int lane, int distance, int width) {
    return lane - distance < (lane & ~(width - 1)) ? lane : lane - distance;
  });
}

void shuffle_down(WarpLane* const* lanes, std::uint32_t mask) {
  shuffle(lanes, mask, [](int lane, int distance, int width) {
    return lane + distance > (lane | (width - 1)) ? lane : lane + distance;
  });
}

void shuffle_xor(WarpLane* const* lanes, std::uint32_t mask) {
  shuffle(lanes, mask, [](int lane, int bits, int width) {
    return (lane ^ bits) > (lane | (width - 1)) ? lane : lane ^ bits;
  });
}

void ballot(WarpLane* const* lanes, std::uint32_t mask) {
  std::uint32_t votes = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1 && lanes[lane]->value) votes |= 1u << lane;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) lanes[lane]->result = votes;
}

void match_any(WarpLane* const* lanes, std::uint32_t mask) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    lanes[lane]->result = 0;
    for (int other = 0; other < 32; ++other)
      if (mask >> other & 1 && lanes[other]->value == lanes[lane]->value) lanes[lane]->result |= 1u << other;
  }
}

std::uint64_t warp_exchange(const char* name, WarpOperation operation, std::uint32_t mask, std::uint64_t value,
                            int argument, int width, const Where& where) {
  Thread& self = *current.running;
  Block& block = *self.block;
  const unsigned lane = self.index % 32, first = self.index - lane;
  self.operation = name;
  self.where = where;
  self.mask = mask;
  self.lane = {value, argument, width, 0};
  const auto named = [&] {
    char text[64];
    std::snprintf(text, sizeof text, "%s with mask 0x%08x, which ", name, mask);
    return std::string(text);
  };
  if (!(mask >> lane & 1))
    fail(named() + "leaves out the calling lane " + std::to_string(lane), where);
  if (width < 1 || width > 32 || (width & (width - 1)) != 0)
    fail(std::string(name) + " with width " + std::to_string(width) + ", which is no power of two up to 32", where);

  WarpLane* lanes[32] = {};
  bool complete = true;
  for (unsigned other = 0; other < 32; ++other) {
    if (!(mask >> other & 1)) continue;
    if (first + other >= block.threads.size())
      fail(named() + "names lane " + std::to_string(other) + " of a warp of " +
               std::to_string(block.threads.size() - first),
           where);
    Thread& thread = block.threads[first + other];
    lanes[other] = &thread.lane;
    if (&thread == &self) continue;
    if (thread.state != State::kAtWarpOperation)
      complete = false;
    else if (!same_place(thread, self) || thread.mask != mask) {
      if (thread.mask >> lane & 1)
        fail("the lanes of a warp are at different operations: " + describe_thread(self) + "; " +
                 describe_thread(thread),
             where);
      complete = false;
    }
  }
  self.state = State::kAtWarpOperation;
  if (complete) {
    operation(lanes, mask);
    if (operation == exchange_nothing) block.orders[first / 32].synchronise(mask);
    for (unsigned other = 0; other < 32; ++other)
      if (mask >> other & 1) block.make_runnable(block.threads[first + other]);
  }
  end_turn();
  return self.lane.result;
}

}  // namespace mdlm_fast::shim
