#include "linear_head.h"

#include <algorithm>
#include <cstring>

namespace mdlm_fast::cpu {

std::int64_t LinearHead::columns(std::int64_t tile) const {
  return std::min<std::int64_t>(kTileColumns, vocabulary - tile * kTileColumns);
}

HiddenRows::HiddenRows(DType dtype, std::int64_t rows, std::int64_t depth)
    : row_bytes_(depth * static_cast<std::int64_t>(size_of(dtype))), units_(units(dtype, depth)), data_(rows * units_) {}

void HiddenRows::set(std::int64_t row, const void* source) {
  if (units_ == 0) return;
  std::uint32_t* to = data_.data() + row * units_;
  to[units_ - 1] = 0;
  std::memcpy(to, source, static_cast<std::size_t>(row_bytes_));
}

void HeadTile::pack(std::int64_t tile, std::int64_t panel_index, std::uint32_t* panel) const {
  const std::int64_t id = tile * kTileColumns + panel_index * kPanelColumns;
  kernels_.pack_transposed(head_.weight_at(id, 0), head_.weight_stride, std::min(kPanelColumns, head_.vocabulary - id),
                           head_.depth, panel);
}

void HeadTile::multiply_panel(std::int64_t tile, std::int64_t panel_index, const std::uint32_t* panel,
                              const HiddenRows& rows, std::int64_t first, std::int64_t count, void* out) const {
  const std::int64_t column = panel_index * kPanelColumns, id = tile * kTileColumns + column;
  const void* bias = head_.bias == nullptr ? nullptr : static_cast<const char*>(head_.bias) + id * head_.element();
  kernels_.multiply(rows.from(first), count, rows.num_units(), panel, bias,
                    std::min(kPanelColumns, head_.vocabulary - id),
                    static_cast<char*>(out) + column * head_.element(), kTileColumns);
}

void HeadTile::stream(std::int64_t tile, const HiddenRows& rows, const HiddenRows* guidance, std::int64_t first,
                      std::int64_t count, void* out, void* guidance_out) {
  if (!panel_) panel_ = std::make_unique<Buffer<std::uint32_t>>(panel_size());
  for (std::int64_t p = 0; p * kPanelColumns < head_.columns(tile); ++p) {
    pack(tile, p, panel_->data());
    multiply_panel(tile, p, panel_->data(), rows, first, count, out);
    if (guidance != nullptr) multiply_panel(tile, p, panel_->data(), *guidance, first, count, guidance_out);
  }
}

void HeadTile::load(std::int64_t tile) {
  if (!panels_) panels_ = std::make_unique<Buffer<std::uint32_t>>(panel_size() * (kTileColumns / kPanelColumns));
  for (std::int64_t p = 0; p * kPanelColumns < head_.columns(tile); ++p)
    pack(tile, p, panels_->data() + p * panel_size());
  tile_ = tile;
}

void HeadTile::multiply(const HiddenRows& rows, std::int64_t first, std::int64_t count, void* out) const {
  for (std::int64_t p = 0; p * kPanelColumns < head_.columns(tile_); ++p)
    multiply_panel(tile_, p, panels_->data() + p * panel_size(), rows, first, count, out);
}

}  // namespace mdlm_fast::cpu
