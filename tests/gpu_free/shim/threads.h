// The shim's own view of a launch: threads, warps and blocks. Kernels never see it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "block.h"
#include "fiber.h"
#include "race.h"
#include "sectors.h"
#include "warp.h"

namespace mdlm_fast::shim {

enum class State : std::uint8_t { kRunnable, kAtBlockBarrier, kAtGridBarrier, kAtWarpOperation, kReturned };

struct Block;

struct Thread {
  Block* block = nullptr;
  Fiber* fiber = nullptr;
  unsigned index = 0;
  State state = State::kRunnable;
  // Where it waits, or waited last.
  const char* operation = nullptr;
  Where where{};
  std::uint32_t mask = 0;
  WarpLane lane{};
  bool predicate = false;
  DoubtfulWrite doubtful_write;
};

struct Block {
  uint3 index{};
  std::vector<Thread> threads;
  std::vector<std::uint32_t> runnable;      // of each warp, the lanes that can run
  unsigned at_block_barrier = 0;
  const Thread* first_at_barrier = nullptr;
  unsigned at_grid_barrier = 0;
  unsigned returned = 0;
  std::uint32_t number = 0;                 // 0 is the first that runs
  std::uint32_t barriers = 0;               // that opened so far
  std::vector<WarpOrder> orders;            // of each warp
  Shadow shadow;                            // of shared memory
  int true_predicates = 0;                  // at the barrier that opened last
  std::unique_ptr<unsigned char[]> memory;  // guard zone, dynamic shared memory, guard zone
  unsigned char* dynamic = nullptr;
  std::vector<unsigned char> static_memory;  // of a cooperative launch, while another block runs

  bool can_run() const;
  void make_runnable(Thread& thread);
};

// Which thread, warp and block comes next, and what uninitialised shared memory holds.
class Schedule {
 public:
  enum class Order { kForward, kReverse, kRandom };
  Order order = Order::kForward;

  void seed(std::uint64_t seed) { random_.seed(seed); }
  // The place of the next among `candidates`, which is not empty. Random: half of the time the one taken last if it is
  // there, so that a warp gets far ahead of others.
  std::size_t choose(const std::vector<std::size_t>& candidates, std::size_t last);
  bool one_in(unsigned n) { return random_() % n == 0; }
  void fill(void* memory, std::size_t bytes);
  // 0 to count - 1 in the order of their turns.
  std::vector<std::size_t> order_of(std::size_t count);

 private:
  std::mt19937_64 random_;
};

// The launch that runs.
struct Launch {
  bool cooperative = false;
  std::size_t shared_bytes = 0;
  const std::function<void()>* body = nullptr;
  std::vector<std::unique_ptr<Block>> blocks;  // those alive: all of a cooperative launch, else one
  Thread* running = nullptr;
  std::string error;  // empty: none
  std::uint32_t started = 0;        // blocks
  std::uint32_t grid_barriers = 0;  // that opened so far
  Shadow shadow;                    // of global memory
};

inline Launch current;
inline SectorSet sectors_loaded, sectors_stored;  // of that launch
inline Schedule schedule;

// Whether two threads wait in the same operation at the same source line.
bool same_place(const Thread& a, const Thread& b);

// What the threads of the blocks alive wait for, when none of them can run.
std::string describe_deadlock(const Launch& launch);
std::string describe_thread(const Thread& thread);
std::string ranges(const std::vector<unsigned>& numbers);  // "0-31, 40" of ascending ones

// Ends the running thread's turn.
void end_turn();

}  // namespace mdlm_fast::shim
