#include "linear_head.h"

#include <algorithm>
#include <cstring>

namespace mdlm_fast::cpu {
namespace {

// Ids of the weight that two sets of rows use in turn: half a megabyte at a depth of 1024 in bf16, a part of the L2 cache.
constexpr std::int64_t kIdsInTurn = 256;

}  // namespace

std::int64_t LinearHead::columns(std::int64_t tile) const {
  return std::min<std::int64_t>(kTileColumns, vocabulary - tile * kTileColumns);
}

HiddenRows::HiddenRows(DType dtype, std::int64_t rows, std::int64_t depth, const Source& source)
    : units_(units(dtype, depth)), data_(rows * units_), panels_(0) {
  if (units_ == 0) return;
  for (std::int64_t n = 0; n < rows; ++n) {
    std::uint32_t* to = data_.data() + n * units_;
    to[units_ - 1] = 0;
    std::memcpy(to, source(n), static_cast<std::size_t>(depth) * size_of(dtype));
  }
  const GemmKernels* kernels = gemm_kernels(dtype);
  if (kernels == nullptr || kernels->multiply_weight == nullptr) return;
  const std::int64_t size = panel_size(dtype, depth), stride = units_ * 4 / static_cast<std::int64_t>(size_of(dtype));
  panels_ = Buffer<std::uint32_t>((rows + kPanelColumns - 1) / kPanelColumns * size);
  for (std::int64_t n = 0; n < rows; n += kPanelColumns)
    kernels->pack_transposed(data_.data() + n * units_, stride, std::min(kPanelColumns, rows - n), depth,
                             panels_.data() + n / kPanelColumns * size);
}

void HeadTile::pack(std::int64_t tile, std::int64_t panel_index, std::uint32_t* panel) const {
  const std::int64_t id = tile * kTileColumns + panel_index * kPanelColumns;
  kernels_.pack_transposed(head_.weight_at(id, 0), head_.weight_stride, std::min(kPanelColumns, head_.vocabulary - id),
                           head_.depth, panel);
}

void HeadTile::multiply_panel(std::int64_t tile, std::int64_t panel_index, const std::uint32_t* panel,
                              const HiddenRows& rows, std::int64_t first, std::int64_t count, void* out) const {
  const std::int64_t column = panel_index * kPanelColumns, id = tile * kTileColumns + column;
  kernels_.multiply(rows.from(first), count, rows.num_units(), panel, bias_at(id),
                    std::min(kPanelColumns, head_.vocabulary - id),
                    static_cast<char*>(out) + column * head_.element(), kTileColumns);
}

void HeadTile::multiply_weight(std::int64_t tile, std::int64_t from, std::int64_t ids, const HiddenRows& rows,
                               std::int64_t first, std::int64_t count, void* out) const {
  const std::int64_t id = tile * kTileColumns + from;
  kernels_.multiply_weight({head_.weight_at(id, 0), head_.weight_stride, ids, head_.depth}, rows.panels(), first, count,
                           bias_at(id), static_cast<char*>(out) + from * head_.element(), kTileColumns);
}

void HeadTile::stream(std::int64_t tile, const HiddenRows& rows, const HiddenRows* guidance, std::int64_t first,
                      std::int64_t count, void* out, void* guidance_out) {
  if (kernels_.multiply_weight != nullptr) {
    const std::int64_t columns = head_.columns(tile), turn = guidance == nullptr ? columns : kIdsInTurn;
    for (std::int64_t from = 0; from < columns; from += turn) {
      const std::int64_t ids = std::min(turn, columns - from);
      multiply_weight(tile, from, ids, rows, first, count, out);
      if (guidance != nullptr) multiply_weight(tile, from, ids, *guidance, first, count, guidance_out);
    }
    return;
  }
  if (!panel_) panel_ = std::make_unique<Buffer<std::uint32_t>>(weight_panel_size());
  for (std::int64_t p = 0; p * kPanelColumns < head_.columns(tile); ++p) {
    pack(tile, p, panel_->data());
    multiply_panel(tile, p, panel_->data(), rows, first, count, out);
    if (guidance != nullptr) multiply_panel(tile, p, panel_->data(), *guidance, first, count, guidance_out);
  }
}

void HeadTile::load(std::int64_t tile) {
  tile_ = tile;
  if (kernels_.multiply_weight != nullptr) return;
  if (!panels_) panels_ = std::make_unique<Buffer<std::uint32_t>>(weight_panel_size() * (kTileColumns / kPanelColumns));
  for (std::int64_t p = 0; p * kPanelColumns < head_.columns(tile); ++p)
    pack(tile, p, panels_->data() + p * weight_panel_size());
}

void HeadTile::multiply(const HiddenRows& rows, std::int64_t first, std::int64_t count, void* out) const {
  if (kernels_.multiply_weight != nullptr) {
    multiply_weight(tile_, 0, head_.columns(tile_), rows, first, count, out);
    return;
  }
  for (std::int64_t p = 0; p * kPanelColumns < head_.columns(tile_); ++p)
    multiply_panel(tile_, p, panels_->data() + p * weight_panel_size(), rows, first, count, out);
}

}  // namespace mdlm_fast::cpu
