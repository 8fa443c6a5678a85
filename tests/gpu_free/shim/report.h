// What a kernel did wrong, and how much it did.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>

// The shim's own functions that are compiled along with a kernel: not part of what race.h watches.
#if defined(__SANITIZE_THREAD__)
#define MDLM_FAST_SHIM_UNWATCHED __attribute__((no_sanitize("thread"), noinline))
#else
#define MDLM_FAST_SHIM_UNWATCHED
#endif

namespace mdlm_fast::shim {

using Where = std::source_location;

// Called by the running thread of a kernel. Ends the launch; does not return.
[[noreturn]] void fail(const std::string& what, const Where& where);
[[noreturn]] void fail_access(const char* kind, std::size_t bytes, const void* address, const Where& where);

// "file.cuh:12".
std::string text_of(const Where& where);

// Since they were last reset. Bytes are those of global memory that went through memory.cuh, cudaMemsetAsync and
// atomics: first as requested, then those of the sectors that each launch touched. A launch is a kernel or a memset.
struct Counters {
  std::uint64_t bytes_loaded, bytes_stored, sector_bytes_loaded, sector_bytes_stored, atomics, launches;
};
inline Counters counters{};
void note_load(std::size_t bytes, const void* address);
void note_store(std::size_t bytes, const void* address);

// Whether threads may lose their turn at stores and atomics, and the chance to do so.
inline bool preemptive = false;
void maybe_preempt();

MDLM_FAST_SHIM_UNWATCHED inline void check_access(const char* kind, std::size_t bytes, const void* address,
                                                  const Where& where) {
  if (address == nullptr || reinterpret_cast<std::uintptr_t>(address) % bytes != 0) [[unlikely]]
    fail_access(kind, bytes, address, where);
}

MDLM_FAST_SHIM_UNWATCHED inline void count_load(std::size_t bytes, const void* address,
                                                const Where& where = Where::current()) {
  check_access("load", bytes, address, where);
  note_load(bytes, address);
}

MDLM_FAST_SHIM_UNWATCHED inline void count_store(std::size_t bytes, const void* address,
                                                 const Where& where = Where::current()) {
  check_access("store", bytes, address, where);
  note_store(bytes, address);
  if (preemptive) maybe_preempt();
}

}  // namespace mdlm_fast::shim
