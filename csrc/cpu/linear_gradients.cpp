// The gradients of linear_logprobs.h.
#include <algorithm>
#include <cstring>
#include <vector>

#include "linear_logprobs.h"
#include "token_logprobs_kernels.h"

namespace mdlm_fast::cpu {
namespace {

// Of dZ at a time: a few tiles at N = 1024, so that a chunk of the weight is still in the L3 cache when it is used again.
constexpr std::int64_t kChunkBytes = std::int64_t{16} << 20;
// Rows whose part of dX one task accumulates.
constexpr std::int64_t kRowsPerTask = 512;
// Depth that products take at a time, of rows in dW and of ids in dX: a panel of it, 32 KB in bf16, fits the L1 cache,
// and what it is multiplied with, 512 rows or so, the L2 cache. A whole number of `kUnitsAtOnce`, so that sums do not
// depend on it.
constexpr std::int64_t kDepthAtOnce = 512;
static_assert(units(DType::kBFloat16, kDepthAtOnce) % kUnitsAtOnce == 0 && kTileColumns % kDepthAtOnce == 0);
// Between rows of dZ: a stride of a power of two would map a column of it to a few sets of the caches.
constexpr std::int64_t kGapBytes = 64;

class Backward {
 public:
  Backward(const LinearHead& head, const LogprobRows& rows, const RowGradient* gradients, bool need_entropy,
           const LinearGradients& out, const ParallelFor& parallel_for)
      : head_(head), kernels_(*gemm_kernels(head.dtype)), rows_(rows), gradients_(gradients),
        need_entropy_(need_entropy), out_(out), parallel_for_(parallel_for),
        tiles_at_once_(std::clamp<std::int64_t>(kChunkBytes / (rows.count * kTileColumns * head.element()), 1,
                                                head.tiles())),
        stride_(tiles_at_once_ * kTileColumns + kGapBytes / head.element()), grad_logits_(rows.count * stride_ * head.element()),
        hidden_panels_(out.grad_weight == nullptr ? 0 : block_size(rows.count / kDepthAtOnce * kDepthAtOnce) +
                                                            block_size(rows.count % kDepthAtOnce)) {
    if (out.grad_weight != nullptr) pack_hidden();
  }

  void run() {
    for (std::int64_t tile = 0; tile < head_.tiles(); tile += tiles_at_once_) {
      first_tile_ = tile;
      end_tile_ = std::min(tile + tiles_at_once_, head_.tiles());
      first_id_ = tile * kTileColumns;
      columns_ = std::min(end_tile_ * kTileColumns, head_.vocabulary) - first_id_;
      fill_grad_logits();
      if (out_.grad_weight != nullptr || out_.grad_bias != nullptr) write_weight_and_bias();
      if (out_.grad_hidden != nullptr) add_hidden();
    }
  }

 private:
  std::int64_t panels() const { return (head_.depth + kPanelColumns - 1) / kPanelColumns; }
  // Of the panels of X over `rows` of its rows.
  std::int64_t block_size(std::int64_t rows) const { return panels() * panel_size(head_.dtype, rows); }
  char* grad_logits(std::int64_t row, std::int64_t column) const {
    return grad_logits_.data() + (row * stride_ + column) * head_.element();
  }
  // X as panels over rows: block of rows, then panel of columns.
  std::uint32_t* hidden_panel(std::int64_t first_row, std::int64_t rows, std::int64_t panel) const {
    return hidden_panels_.data() + block_size(first_row) + panel * panel_size(head_.dtype, rows);
  }

  void pack_hidden() {
    const std::int64_t stride = rows_.hidden.num_units() * 4 / head_.element();
    for (std::int64_t first = 0; first < rows_.count; first += kDepthAtOnce) {
      const std::int64_t count = std::min(kDepthAtOnce, rows_.count - first);
      for (std::int64_t p = 0; p < panels(); ++p) {
        const char* from = reinterpret_cast<const char*>(rows_.hidden.from(first).data);
        kernels_.pack(from + p * kPanelColumns * head_.element(), stride,
                      std::min(kPanelColumns, head_.depth - p * kPanelColumns), count, hidden_panel(first, count, p));
      }
    }
  }

  void fill_grad_logits() {
    for_each_logit_tile(head_, rows_.hidden, rows_.count, first_tile_, end_tile_, parallel_for_,
                        [&](std::int64_t n, std::int64_t tile, const void* z) {
                          const std::int64_t columns = head_.columns(tile);
                          char* to = grad_logits(n, (tile - first_tile_) * kTileColumns);
                          gradient_tile(z, to, head_.dtype, columns, tile * kTileColumns, 0, rows_.ids, &gradients_[n],
                                        1, need_entropy_);
                          // The bf16 partner of an odd last column.
                          if (columns % 2 != 0)
                            std::memset(to + columns * head_.element(), 0, static_cast<std::size_t>(head_.element()));
                        });
  }

  void write_weight_and_bias() {
    const std::int64_t tasks = (columns_ + kPanelColumns - 1) / kPanelColumns;
    parallel_for_(0, tasks, 1, [&](std::int64_t begin, std::int64_t end) {
      Buffer<std::uint32_t> transposed(panel_size(head_.dtype, std::min(kDepthAtOnce, rows_.count)));
      std::vector<float> weight(static_cast<std::size_t>(out_.grad_weight != nullptr ? kPanelColumns * head_.depth : 0));
      for (std::int64_t task = begin; task < end; ++task) {
        const std::int64_t column = task * kPanelColumns;
        const std::int64_t columns = std::min(kPanelColumns, columns_ - column);
        if (out_.grad_weight != nullptr) write_weight(column, columns, transposed.data(), weight);
        if (out_.grad_bias != nullptr) write_bias(column, columns);
      }
    });
  }

  // 32 rows of dW.
  void write_weight(std::int64_t column, std::int64_t columns, std::uint32_t* transposed, std::vector<float>& sums) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (std::int64_t first = 0; first < rows_.count; first += kDepthAtOnce) {
      const std::int64_t count = std::min(kDepthAtOnce, rows_.count - first);
      const UnitMatrix a = kernels_.transpose(grad_logits(first, column), stride_, columns, count, transposed);
      for (std::int64_t p = 0; p < panels(); ++p)
        kernels_.add(a, columns, units(head_.dtype, count), hidden_panel(first, count, p),
                     std::min(kPanelColumns, head_.depth - p * kPanelColumns), sums.data() + p * kPanelColumns,
                     head_.depth);
    }
    for (std::int64_t v = 0; v < columns; ++v)
      narrow(sums.data() + v * head_.depth, head_.depth, out_.grad_weight, (first_id_ + column + v) * head_.depth);
  }

  void write_bias(std::int64_t column, std::int64_t columns) {
    double sums[kPanelColumns] = {};
    float values[kPanelColumns], rounded[kPanelColumns];
    for (std::int64_t n = 0; n < rows_.count; ++n) {
      score_kernels().widen[static_cast<int>(head_.dtype)](grad_logits(n, column), static_cast<int>(columns), values);
      for (std::int64_t v = 0; v < columns; ++v) sums[v] += values[v];
    }
    for (std::int64_t v = 0; v < columns; ++v) rounded[v] = static_cast<float>(sums[v]);
    narrow(rounded, columns, out_.grad_bias, first_id_ + column);
  }

  void narrow(const float* values, std::int64_t count, void* out, std::int64_t at) const {
    gradient_kernels().narrow[static_cast<int>(head_.dtype)](values, static_cast<int>(count),
                                                             static_cast<char*>(out) + at * head_.element());
  }

  void add_hidden() {
    const std::int64_t groups = (rows_.count + kRowsPerTask - 1) / kRowsPerTask;
    parallel_for_(0, groups * panels(), 1, [&](std::int64_t begin, std::int64_t end) {
      Buffer<std::uint32_t> panel(panel_size(head_.dtype, kDepthAtOnce));
      for (std::int64_t id = 0; id < columns_; id += kDepthAtOnce)
        for (std::int64_t task = begin; task < end; ++task)
          add_hidden(id, task / panels() * kRowsPerTask, task % panels() * kPanelColumns, panel.data());
    });
  }

  // What 512 ids from `id` of the chunk on contribute to 512 rows and 32 columns of dX.
  void add_hidden(std::int64_t id, std::int64_t first, std::int64_t column, std::uint32_t* panel) {
    const std::int64_t ids = std::min(kDepthAtOnce, columns_ - id), rows = std::min(kRowsPerTask, rows_.count - first);
    const std::int64_t columns = std::min(kPanelColumns, head_.depth - column);
    kernels_.pack(head_.weight_at(first_id_ + id, column), head_.weight_stride, columns, ids, panel);
    kernels_.add({reinterpret_cast<const std::uint32_t*>(grad_logits(first, id)), stride_ * head_.element() / 4, 1}, rows,
                 units(head_.dtype, ids), panel, columns, out_.grad_hidden + first * head_.depth + column, head_.depth);
  }

  const LinearHead& head_;
  const GemmKernels& kernels_;
  const LogprobRows& rows_;
  const RowGradient* gradients_;
  bool need_entropy_;
  const LinearGradients& out_;
  const ParallelFor& parallel_for_;
  std::int64_t tiles_at_once_, stride_;
  Buffer<char> grad_logits_;
  Buffer<std::uint32_t> hidden_panels_;
  std::int64_t first_tile_ = 0, end_tile_ = 0, first_id_ = 0, columns_ = 0;  // the chunk
};

}  // namespace

void linear_logprob_gradients(const LinearHead& head, const LogprobRows& rows, const RowGradient* gradients,
                              bool need_entropy, const LinearGradients& out, const ParallelFor& parallel_for) {
  if (rows.count > 0) Backward(head, rows, gradients, need_entropy, out, parallel_for).run();
}

}  // namespace mdlm_fast::cpu
