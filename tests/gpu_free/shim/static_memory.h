// Static __shared__ variables: `static thread_local`, so they all lie in this library's thread-local segment, and
// nothing else does (the shim has no other thread-local variables, and neither have the bindings).
#pragma once

#include <cstddef>

namespace mdlm_fast::shim {

struct MemoryRange {
  unsigned char* data;
  std::size_t bytes;
};

// The segment of the calling OS thread.
MemoryRange static_shared_memory();

}  // namespace mdlm_fast::shim
