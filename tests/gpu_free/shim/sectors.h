// The 32-byte sectors of memory that one launch touches, each once: what must come from memory however good the caches.
#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <unordered_map>

namespace mdlm_fast::shim {

class SectorSet {
 public:
  void add(std::uintptr_t address, std::size_t bytes) {
    for (std::uintptr_t sector = address / kSector; sector * kSector < address + bytes; ++sector) {
      const std::uintptr_t page = sector / kPage;
      if (last_ == nullptr || page != last_page_) {
        last_ = &pages_[page];
        last_page_ = page;
      }
      last_->set(sector % kPage);
    }
  }

  // Bytes in all sectors; empties the set.
  std::uint64_t take_bytes() {
    std::uint64_t sectors = 0;
    for (const auto& [page, touched] : pages_) sectors += touched.count();
    pages_.clear();
    last_ = nullptr;
    return kSector * sectors;
  }

 private:
  static constexpr std::uintptr_t kSector = 32, kPage = 256;  // sectors of a page
  using Page = std::bitset<kPage>;
  std::unordered_map<std::uintptr_t, Page> pages_;
  std::uintptr_t last_page_ = 0;
  Page* last_ = nullptr;
};

}  // namespace mdlm_fast::shim
