#include "block.h"

#include <algorithm>
#include <cstring>
#include <mutex>

#include "device.h"
#include "static_memory.h"
#include "threads.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace mdlm_fast::shim {

namespace {

constexpr std::size_t kGuardBytes = 4096;
constexpr unsigned char kGuard = 0xa5;

MemoryRange static_memory{};                   // of the OS thread that launches
std::vector<std::unique_ptr<Fiber>> fibers;    // kept from launch to launch

void allocate_shared_memory(Block& block, std::size_t bytes) {
  block.memory = std::make_unique<unsigned char[]>(2 * kGuardBytes + bytes + 16);
  const auto start = reinterpret_cast<std::uintptr_t>(block.memory.get()) + kGuardBytes;
  block.dynamic = reinterpret_cast<unsigned char*>((start + 15) / 16 * 16);
  schedule.fill(block.dynamic, bytes);
  std::memset(block.memory.get(), kGuard, static_cast<std::size_t>(block.dynamic - block.memory.get()));
  std::memset(block.dynamic + bytes, kGuard, kGuardBytes);
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(block.memory.get(), static_cast<std::size_t>(block.dynamic - block.memory.get()));
  __asan_poison_memory_region(block.dynamic + bytes, kGuardBytes);
#endif
}

void check_guard_zones(Block& block, std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(block.memory.get(), 2 * kGuardBytes + bytes + 16);
#endif
  const auto intact = [](const unsigned char* from, const unsigned char* to) {
    return std::find_if(from, to, [](unsigned char byte) { return byte != kGuard; });
  };
  const unsigned char* end = block.dynamic + bytes;
  std::ptrdiff_t place = 0;
  if (const auto* bad = intact(block.memory.get(), block.dynamic); bad != block.dynamic)
    place = bad - block.dynamic;
  else if (bad = intact(end, end + kGuardBytes); bad != end + kGuardBytes)
    place = bad - block.dynamic;
  else
    return;
  if (current.error.empty())
    current.error = "block (" + std::to_string(block.index.x) + ", " + std::to_string(block.index.y) + ", " +
                    std::to_string(block.index.z) + ") wrote outside its " + std::to_string(bytes) +
                    " bytes of dynamic shared memory, at byte " + std::to_string(place);
}

void run_thread(void* argument) {
  Thread& thread = *static_cast<Thread*>(argument);
  (*current.body)();
  settle_doubtful_write();
  thread.state = State::kReturned;
  ++thread.block->returned;
}

void enter_block(Block& block) {
  blockIdx = block.index;
  if (current.cooperative) std::memcpy(static_memory.data, block.static_memory.data(), static_memory.bytes);
}

void leave_block(Block& block) {
  if (current.cooperative) std::memcpy(block.static_memory.data(), static_memory.data, static_memory.bytes);
}

std::unique_ptr<Block> make_block(uint3 index, int threads, std::size_t first_fiber) {
  auto block = std::make_unique<Block>();
  block->index = index;
  block->number = current.started++;
  block->threads.resize(static_cast<std::size_t>(threads));
  block->runnable.resize((static_cast<std::size_t>(threads) + 31) / 32);
  block->orders.resize(block->runnable.size());
  for (std::size_t i = 0; i < block->threads.size(); ++i) {
    Thread& thread = block->threads[i];
    thread.block = block.get();
    thread.index = static_cast<unsigned>(i);
    if (fibers.size() <= first_fiber + i) fibers.push_back(std::make_unique<Fiber>());
    thread.fiber = fibers[first_fiber + i].get();
    thread.fiber->start(run_thread, &thread);
    block->make_runnable(thread);
  }
  allocate_shared_memory(*block, current.shared_bytes);
  if (current.cooperative) {
    block->static_memory.resize(static_memory.bytes);
    schedule.fill(block->static_memory.data(), static_memory.bytes);
  } else {
    schedule.fill(static_memory.data, static_memory.bytes);
  }
  return block;
}

// One turn for every lane of the warp that can run now.
void run_warp(Block& block, std::size_t warp) {
  const std::uint32_t turn = block.runnable[warp];
  for (const std::size_t lane : schedule.order_of(32)) {
    if (!(turn >> lane & 1)) continue;
    Thread& thread = block.threads[warp * 32 + lane];
    threadIdx = {thread.index, 0, 0};
    current.running = &thread;
    thread.fiber->resume();
    current.running = nullptr;
    if (thread.state != State::kRunnable) block.runnable[warp] &= ~(1u << lane);
    if (!current.error.empty()) return;
  }
}

// Runs warps of a block until none can go on, or, in the random schedule of a cooperative launch, for a while.
void run_block(Block& block) {
  enter_block(block);
  std::size_t last = 0;
  std::vector<std::size_t> warps;
  while (current.error.empty()) {
    warps.clear();
    for (std::size_t i = 0; i < block.runnable.size(); ++i)
      if (block.runnable[i] != 0) warps.push_back(i);
    if (warps.empty()) break;
    last = schedule.choose(warps, last);
    run_warp(block, last);
    if (current.cooperative && schedule.order == Schedule::Order::kRandom && schedule.one_in(16)) break;
  }
  leave_block(block);
}

// Runs all blocks alive until their threads have returned.
void run_blocks() {
  std::size_t last = 0;
  std::vector<std::size_t> candidates;
  while (current.error.empty()) {
    candidates.clear();
    for (std::size_t i = 0; i < current.blocks.size(); ++i)
      if (current.blocks[i]->can_run()) candidates.push_back(i);
    if (candidates.empty()) break;
    last = schedule.choose(candidates, last);
    run_block(*current.blocks[last]);
  }
  const bool finished = std::all_of(current.blocks.begin(), current.blocks.end(),
                                    [](const auto& block) { return block->returned == block->threads.size(); });
  if (current.error.empty() && !finished) current.error = describe_deadlock(current);
  for (const auto& block : current.blocks) check_guard_zones(*block, current.shared_bytes);
  current.blocks.clear();
}

}  // namespace

bool Block::can_run() const {
  return std::any_of(runnable.begin(), runnable.end(), [](std::uint32_t lanes) { return lanes != 0; });
}

void Block::make_runnable(Thread& thread) {
  thread.state = State::kRunnable;
  runnable[thread.index / 32] |= 1u << thread.index % 32;
}

cudaError_t launch(dim3 grid, int threads, std::size_t shared_bytes, bool cooperative, cudaStream_t,
                   const std::function<void()>& body) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  const std::size_t count = std::size_t{grid.x} * grid.y * grid.z;
  if (count == 0 || threads < 1 || threads > kMaxThreads || grid.y > 65535 || grid.z > 65535)
    return record_error(cudaErrorInvalidConfiguration, "");
  if (shared_bytes > kMaxSharedBytes) return record_error(cudaErrorInvalidValue, "");
  if (cooperative && count > static_cast<std::size_t>(blocks_per_multiprocessor(threads, shared_bytes)) *
                                static_cast<std::size_t>(multiprocessors()))
    return record_error(cudaErrorCooperativeLaunchTooLarge, "");

  ++counters.launches;
  gridDim = grid;
  blockDim = dim3(static_cast<unsigned>(threads));
  static_memory = static_shared_memory();
  preemptive = schedule.order == Schedule::Order::kRandom;
  current = Launch{};
  current.cooperative = cooperative;
  current.shared_bytes = shared_bytes;
  current.body = &body;
  for (const std::size_t next : schedule.order_of(count)) {
    const uint3 index{static_cast<unsigned>(next % grid.x), static_cast<unsigned>(next / grid.x % grid.y),
                      static_cast<unsigned>(next / grid.x / grid.y)};
    current.blocks.push_back(make_block(index, threads, current.blocks.size() * static_cast<std::size_t>(threads)));
    if (!cooperative) run_blocks();
    if (!current.error.empty()) break;
  }
  if (cooperative) run_blocks();
  counters.sector_bytes_loaded += sectors_loaded.take_bytes();
  counters.sector_bytes_stored += sectors_stored.take_bytes();
  return record_error(current.error.empty() ? cudaSuccess : cudaErrorLaunchFailure, current.error);
}

void* dynamic_shared_memory() { return current.running->block->dynamic; }

bool in_shared_memory(const void* address) {
  const auto* place = static_cast<const unsigned char*>(address);
  const unsigned char* dynamic = current.running->block->dynamic;
  return (place >= dynamic && place < dynamic + current.shared_bytes) ||
         (place >= static_memory.data && place < static_memory.data + static_memory.bytes);
}

int block_barrier(const char* operation, bool predicate, const Where& where) {
  Thread& self = *current.running;
  Block& block = *self.block;
  self.operation = operation;
  self.where = where;
  self.predicate = predicate;
  self.state = State::kAtBlockBarrier;
  if (block.at_block_barrier == 0) block.first_at_barrier = &self;
  if (!same_place(self, *block.first_at_barrier))
    fail("divergent barrier: " + describe_thread(self) + "; " + describe_thread(*block.first_at_barrier), where);
  if (++block.at_block_barrier == block.threads.size()) {
    block.at_block_barrier = 0;
    ++block.barriers;
    block.true_predicates = 0;
    for (Thread& thread : block.threads) {
      block.true_predicates += thread.predicate;
      block.make_runnable(thread);
    }
  }
  end_turn();
  return block.true_predicates;
}

void grid_barrier(const Where& where) {
  Thread& self = *current.running;
  self.operation = "grid_barrier";
  self.where = where;
  if (!current.cooperative) fail("grid_barrier in a launch that is not cooperative", where);
  self.state = State::kAtGridBarrier;
  ++self.block->at_grid_barrier;
  const bool complete = std::all_of(current.blocks.begin(), current.blocks.end(), [](const auto& block) {
    return block->at_grid_barrier == block->threads.size();
  });
  if (complete) {
    ++current.grid_barriers;
    for (const auto& block : current.blocks) {
      block->at_grid_barrier = 0;
      ++block->barriers;
      for (Thread& thread : block->threads) block->make_runnable(thread);
    }
  }
  end_turn();
}

void end_turn() {
  settle_doubtful_write();
  Fiber::suspend();
}

void maybe_preempt() {
  if (current.running != nullptr && schedule.one_in(8)) end_turn();
}

}  // namespace mdlm_fast::shim
