#include "linear_head.h"

#include <algorithm>
#include <cstring>

namespace mdlm_fast::cpu {

std::int64_t LinearHead::columns(std::int64_t tile) const {
  return std::min<std::int64_t>(kTileColumns, vocabulary - tile * kTileColumns);
}

HiddenRows::HiddenRows(std::int64_t rows, std::int64_t depth)
    : rows_(rows), depth_(depth), num_pairs_((depth + 1) / 2), pairs_(rows * num_pairs_) {}

void HiddenRows::set(std::int64_t row, const void* source) {
  std::uint32_t* to = pairs_.data() + row * num_pairs_;
  if (num_pairs_ > 0) to[num_pairs_ - 1] = 0;
  if (source == nullptr) {
    std::memset(to, 0, static_cast<std::size_t>(num_pairs_) * 4);
  } else {
    std::memcpy(to, source, static_cast<std::size_t>(depth_) * 2);
  }
}

namespace {

void multiply_into(const LinearHead& head, const HiddenRows& rows, std::int64_t first, std::int64_t count,
                   std::int64_t tile, std::int64_t panel_index, const std::uint32_t* panel, std::uint16_t* out) {
  const std::int64_t column = panel_index * kPanelColumns, id = tile * kTileColumns + column;
  const std::int64_t columns = std::min(kPanelColumns, head.vocabulary - id);
  const std::uint16_t* bias = head.bias == nullptr ? nullptr : head.bias + id;
  multiply_panel_bf16(rows.from(first), count, rows.num_pairs(), panel, bias, columns, out + column, kTileColumns);
}

void pack(const LinearHead& head, std::int64_t tile, std::int64_t panel_index, std::uint32_t* panel) {
  const std::int64_t id = tile * kTileColumns + panel_index * kPanelColumns;
  pack_panel_transposed(head.weight + id * head.weight_stride, head.weight_stride,
                        std::min(kPanelColumns, head.vocabulary - id), head.depth, panel);
}

std::int64_t num_panels(const LinearHead& head, std::int64_t tile) {
  return (head.columns(tile) + kPanelColumns - 1) / kPanelColumns;
}

}  // namespace

void HeadTile::stream(std::int64_t tile, const HiddenRows& rows, std::int64_t first, std::int64_t count,
                      std::uint16_t* out) {
  stream(tile, rows, nullptr, first, count, out, nullptr);
}

void HeadTile::stream(std::int64_t tile, const HiddenRows& rows, const HiddenRows* guidance, std::int64_t first,
                      std::int64_t count, std::uint16_t* out, std::uint16_t* guidance_out) {
  if (!panel_) panel_ = std::make_unique<Buffer<std::uint32_t>>(panel_size(head_.depth));
  for (std::int64_t p = 0; p < num_panels(head_, tile); ++p) {
    pack(head_, tile, p, panel_->data());
    multiply_into(head_, rows, first, count, tile, p, panel_->data(), out);
    if (guidance != nullptr) multiply_into(head_, *guidance, first, count, tile, p, panel_->data(), guidance_out);
  }
}

void HeadTile::load(std::int64_t tile) {
  const std::int64_t size = panel_size(head_.depth);
  if (!panels_) panels_ = std::make_unique<Buffer<std::uint32_t>>(size * (kTileColumns / kPanelColumns));
  for (std::int64_t p = 0; p < num_panels(head_, tile); ++p) pack(head_, tile, p, panels_->data() + p * size);
  tile_ = tile;
}

void HeadTile::multiply(const HiddenRows& rows, std::int64_t first, std::int64_t count, std::uint16_t* out) const {
  const std::int64_t size = panel_size(head_.depth);
  for (std::int64_t p = 0; p < num_panels(head_, tile_); ++p)
    multiply_into(head_, rows, first, count, tile_, p, panels_->data() + p * size, out);
}

}  // namespace mdlm_fast::cpu
