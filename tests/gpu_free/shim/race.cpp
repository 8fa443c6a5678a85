#include "race.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "threads.h"

namespace mdlm_fast::shim {

namespace {

// "file.cuh:12" of an instruction, innermost function first; its place in the library if there is no addr2line.
std::string source_of(const void* instruction) {
  Dl_info library{};
  if (dladdr(instruction, &library) == 0) return "?";
  char place[512];
  // The call before the return address.
  const auto offset = reinterpret_cast<std::uintptr_t>(instruction) -
                      reinterpret_cast<std::uintptr_t>(library.dli_fbase) - 1;
  std::snprintf(place, sizeof place, "addr2line -i -s -e '%s' 0x%zx 2>/dev/null", library.dli_fname, offset);
  std::string lines;
  if (FILE* output = popen(place, "r")) {
    while (std::fgets(place, sizeof place, output)) {
      std::string line(place);
      line.erase(std::min(line.find(" ("), line.find('\n')));
      if (line.starts_with("??") || line.starts_with("warp.h") || line.starts_with("atomics.h")) continue;
      lines += (lines.empty() ? "" : " from ") + line;
    }
    pclose(output);
  }
  std::snprintf(place, sizeof place, "%s+0x%zx", library.dli_fname, offset);
  return lines.empty() ? place : lines;
}

std::uint32_t barriers_of(const Block& block) { return 1 + block.barriers; }

// Whether some of `earlier` and an access by `thread` now are in no order.
bool unordered(const Accesses& earlier, const Thread& thread) {
  if (earlier.barriers == 0) return false;
  const unsigned lane = thread.index % 32, warp = thread.index / 32;
  // Blocks have only the grid's barriers in common.
  if (earlier.block != thread.block->number) return earlier.grid_barriers == current.grid_barriers;
  if (earlier.barriers < barriers_of(*thread.block)) return false;
  if (earlier.several_warps || earlier.warp != warp) return true;
  const auto& seen = thread.block->orders[warp].seen[lane];
  for (unsigned other = 0; other < 32; ++other)
    if (other != lane && earlier.lanes >> other & 1 && seen[other] <= earlier.clock) return true;
  return false;
}

void remember(Accesses& accesses, const Thread& thread, const void* instruction) {
  const Block& block = *thread.block;
  const unsigned lane = thread.index % 32, warp = thread.index / 32;
  const bool same_phase = accesses.barriers == barriers_of(block) && accesses.block == block.number;
  const bool joins = same_phase && (accesses.several_warps || accesses.warp != warp);
  accesses = {barriers_of(block), current.grid_barriers, block.number, warp,
              (same_phase ? accesses.lanes : 0u) | 1u << lane, block.orders[warp].clock, joins, instruction};
}

std::string describe(const char* what, const Accesses& accesses) {
  std::vector<unsigned> threads;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (accesses.lanes >> lane & 1) threads.push_back(accesses.warp * 32 + lane);
  const std::string who = accesses.several_warps ? "several warps" : "threads " + ranges(threads);
  return std::string(what) + " by the block that ran as number " + std::to_string(accesses.block) + ", " + who +
         ", last at " + source_of(accesses.instruction);
}

const char* name(Access access) {
  switch (access) {
    case Access::kRead: return "a read";
    case Access::kWrite: return "a write";
    case Access::kAtomic: return "an atomic";
  }
  return "";
}

[[noreturn]] void fail_race(Access access, const void* address, unsigned bytes, const void* instruction,
                            const char* other, const Accesses& earlier) {
  fail(std::string("race in ") + (in_shared_memory(address) ? "shared" : "global") + " memory: " + name(access) +
           " of " + std::to_string(bytes) + " bytes at " + source_of(instruction) +
           ", and, with no barrier between, " + describe(other, earlier),
       current.running->where);
}

}  // namespace

void WarpOrder::synchronise(std::uint32_t mask) {
  ++clock;
  for (int a = 0; a < 32; ++a)
    for (int b = 0; b < 32; ++b)
      if (mask >> a & 1 && mask >> b & 1) seen[a][b] = clock;
}

void settle_doubtful_write() {
  DoubtfulWrite write = current.running->doubtful_write;
  if (write.address == nullptr) return;
  current.running->doubtful_write.address = nullptr;
  if (std::memcmp(write.address, write.before.data(), write.bytes) != 0)
    fail_race(Access::kWrite, write.address, write.bytes, write.instruction, "a write", write.earlier);
}

void note_access(Access access, const void* address, unsigned bytes, const void* instruction) {
  if (current.running == nullptr) return;
  settle_doubtful_write();
  Thread& thread = *current.running;
  const bool shared = in_shared_memory(address);
  if (!shared && Fiber::on_any_stack(address)) return;
  Shadow& shadow = shared ? thread.block->shadow : current.shadow;
  for (unsigned i = 0; i < bytes; ++i) {
    ByteHistory& history = shadow.at(reinterpret_cast<std::uintptr_t>(address) + i);
    const auto against = [&](const Accesses& earlier, const char* what) {
      if (unordered(earlier, thread)) fail_race(access, address, bytes, instruction, what, earlier);
    };
    if (access != Access::kAtomic) against(history.atomics, "an atomic");
    if (access != Access::kRead) against(history.reads, "a read");
    if (access != Access::kWrite || bytes > thread.doubtful_write.before.size()) {
      against(history.writes, "a write");
    } else if (unordered(history.writes, thread)) {
      DoubtfulWrite& write = thread.doubtful_write;
      write = {static_cast<const unsigned char*>(address), bytes, {}, history.writes, instruction};
      std::memcpy(write.before.data(), address, bytes);
    }
    remember(access == Access::kRead ? history.reads : access == Access::kWrite ? history.writes : history.atomics,
             thread, instruction);
  }
}

}  // namespace mdlm_fast::shim

// What g++ -fsanitize=thread calls.
namespace shim = mdlm_fast::shim;
#define MDLM_FAST_SHIM_HOOK extern "C" __attribute__((visibility("hidden")))
#define MDLM_FAST_SHIM_ACCESS(bytes)                                                            \
  MDLM_FAST_SHIM_HOOK void __tsan_read##bytes(void* address) {                                  \
    shim::note_access(shim::Access::kRead, address, bytes, __builtin_return_address(0));        \
  }                                                                                             \
  MDLM_FAST_SHIM_HOOK void __tsan_write##bytes(void* address) {                                 \
    shim::note_access(shim::Access::kWrite, address, bytes, __builtin_return_address(0));       \
  }                                                                                             \
  MDLM_FAST_SHIM_HOOK void __tsan_unaligned_read##bytes(void* address) {                        \
    shim::note_access(shim::Access::kRead, address, bytes, __builtin_return_address(0));        \
  }                                                                                             \
  MDLM_FAST_SHIM_HOOK void __tsan_unaligned_write##bytes(void* address) {                       \
    shim::note_access(shim::Access::kWrite, address, bytes, __builtin_return_address(0));       \
  }
MDLM_FAST_SHIM_ACCESS(1)
MDLM_FAST_SHIM_ACCESS(2)
MDLM_FAST_SHIM_ACCESS(4)
MDLM_FAST_SHIM_ACCESS(8)
MDLM_FAST_SHIM_ACCESS(16)
MDLM_FAST_SHIM_HOOK void __tsan_read_range(void* address, std::size_t bytes) {
  shim::note_access(shim::Access::kRead, address, static_cast<unsigned>(bytes), __builtin_return_address(0));
}
MDLM_FAST_SHIM_HOOK void __tsan_write_range(void* address, std::size_t bytes) {
  shim::note_access(shim::Access::kWrite, address, static_cast<unsigned>(bytes), __builtin_return_address(0));
}
MDLM_FAST_SHIM_HOOK void __tsan_init() { shim::watching_races = true; }
MDLM_FAST_SHIM_HOOK void __tsan_func_entry(void*) {}
MDLM_FAST_SHIM_HOOK void __tsan_func_exit() {}
MDLM_FAST_SHIM_HOOK void __tsan_vptr_read(void**) {}
MDLM_FAST_SHIM_HOOK void __tsan_vptr_update(void**, void*) {}
