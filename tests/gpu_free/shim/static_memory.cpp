#include "static_memory.h"

#include <link.h>

#include <cstdint>

namespace mdlm_fast::shim {

namespace {

// The segment is there once one of its variables was used.
thread_local volatile char anchor;

int find_segment(dl_phdr_info* info, std::size_t, void* result) {
  auto& range = *static_cast<MemoryRange*>(result);
  const auto place = reinterpret_cast<std::uintptr_t>(const_cast<char*>(&anchor));
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    if (header.p_type != PT_TLS || info->dlpi_tls_data == nullptr) continue;
    const auto begin = reinterpret_cast<std::uintptr_t>(info->dlpi_tls_data);
    if (place < begin || place >= begin + header.p_memsz) continue;
    range = {reinterpret_cast<unsigned char*>(begin), header.p_memsz};
    return 1;
  }
  return 0;
}

}  // namespace

MemoryRange static_shared_memory() {
  anchor = 0;
  MemoryRange range{nullptr, 0};
  dl_iterate_phdr(find_segment, &range);
  return range;
}

}  // namespace mdlm_fast::shim
