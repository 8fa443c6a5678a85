// Races: two accesses to one byte, one of them a write and not both atomic, that no barrier orders; but not two writes
// of the same value. Seen in kernels that were compiled with -fsanitize=thread: the compiler then announces every load
// and store, to race.cpp instead of to the sanitizer's own library, which knows nothing of fibers.
//
// What orders: __syncthreads and its variants the threads of a block, grid_barrier all threads, __syncwarp the lanes
// that it names. Shuffles and votes do not (CUDA promises no memory ordering for them), nor do atomics and fences.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>

namespace mdlm_fast::shim {

// How far the lanes of a warp have synchronised: `clock` counts __syncwarp, and seen[a][b] is its value after the last
// one that lanes a and b took part in.
struct WarpOrder {
  std::uint32_t clock = 0;
  std::array<std::array<std::uint32_t, 32>, 32> seen{};

  void synchronise(std::uint32_t mask);
};

// Accesses of one kind to one byte since the last barrier.
struct Accesses {
  std::uint32_t barriers = 0;       // of the block, plus 1; 0: no access yet
  std::uint32_t grid_barriers = 0;  // those among them that were the grid's
  std::uint32_t block = 0, warp = 0;
  std::uint32_t lanes = 0;
  std::uint32_t clock = 0;          // of the warp, at the last of them
  bool several_warps = false;
  const void* instruction = nullptr;
};

struct ByteHistory {
  Accesses reads, writes, atomics;
};

// Histories of the bytes of one address space, a page at a time.
class Shadow {
 public:
  ByteHistory& at(std::uintptr_t address) {
    auto& page = pages_[address / kPage];
    if (!page) page = std::make_unique<Page>();
    return (*page)[address % kPage];
  }

 private:
  static constexpr std::uintptr_t kPage = 512;
  using Page = std::array<ByteHistory, kPage>;
  std::unordered_map<std::uintptr_t, std::unique_ptr<Page>> pages_;
};

// Whether this library's kernels announce their accesses.
inline bool watching_races = false;

enum class Access { kRead, kWrite, kAtomic };

// A write that another write races with: the next announcement finds out whether it changed the value.
struct DoubtfulWrite {
  const unsigned char* address = nullptr;  // null: none
  unsigned bytes = 0;
  std::array<unsigned char, 16> before{};
  Accesses earlier;
  const void* instruction = nullptr;
};

// By the running thread, if there is one; `instruction` is where. Fails the launch if it races.
void note_access(Access access, const void* address, unsigned bytes, const void* instruction);
// Called before another thread may run.
void settle_doubtful_write();

}  // namespace mdlm_fast::shim
