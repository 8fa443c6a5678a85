#include "linear_library.h"

#include <cstring>

#include "../cpu/linear_score.h"

namespace mdlm_fast {
namespace {

using cpu::kTileColumns;

// Of the output of one GEMM: small enough for the caches, large enough to keep the GEMM busy.
constexpr int64_t kChunkBytes = int64_t{8} << 20;

class LibraryGroup {
 public:
  LibraryGroup(const cpu::RowScorer& scorer, const cpu::ScoreRequest& request, const Tensor& like,
               const Tensor& weight, const OptionalTensor& bias, const int64_t* slots, int64_t count)
      : scorer_(scorer), request_(request), weight_(weight), bias_(bias), slots_(slots), count_(count),
        element_(static_cast<int64_t>(cpu::size_of(scorer.options().dtype))), tiles_(scorer.options().tiles()),
        rows_(gather(request.logits, request.rows, like)), records_(static_cast<size_t>(count * tiles_)) {
    if (request.guidance.data != nullptr) guidance_ = gather(request.guidance, request.guidance_rows, like);
    const int64_t fitting = kChunkBytes / (count * kTileColumns * element_);
    tiles_at_once_ = scorer.options().filtered() ? tiles_ : std::clamp<int64_t>(fitting, 1, tiles_);
    logits_ = torch::stable::new_empty(like, {count, tiles_at_once_ * kTileColumns});
    if (guidance_) guidance_logits_ = torch::stable::new_empty(like, {count, tiles_at_once_ * kTileColumns});
  }

  void score_tiles() {
    for (int64_t first = 0; first < tiles_; first += tiles_at_once_) {
      const int64_t tiles = std::min(tiles_at_once_, tiles_ - first);
      compute(first, tiles, rows_, logits_);
      if (guidance_) compute(first, tiles, *guidance_, *guidance_logits_);
      torch::stable::parallel_for(0, count_ * tiles, 1, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          const int64_t n = k / tiles, tile = first + k % tiles;
          records_[n * tiles_ + tile] = scorer_.tile(cpu::row_inputs(request_, slots_[n]), at(logits_, n, k % tiles),
                                                     guidance_ ? at(*guidance_logits_, n, k % tiles) : nullptr, tile,
                                                     cpu::thread_scratch());
        }
      });
    }
  }

  void finish(const cpu::ScoreOutputs& outputs) {
    const auto finish_rows = [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        Reader reader(*this, n);
        cpu::write_score(outputs, slots_[n],
                         scorer_.finish(cpu::row_inputs(request_, slots_[n]), &records_[n * tiles_], reader,
                                        cpu::thread_scratch()));
      }
    };
    // Rows that call the library for their tile share its threads instead.
    if (kept()) torch::stable::parallel_for(0, count_, 1, finish_rows);
    else finish_rows(0, count_);
  }

 private:
  // Tiles of one row: kept, or computed again. The library may sum in another order for one row than for many, so a
  // recomputed logit can differ by a rounding; the draw is then from weights that are off by as much.
  class Reader : public cpu::TileReader {
   public:
    Reader(LibraryGroup& group, int64_t row) : group_(group), row_(row) {}
    const void* logits(int64_t j) override { return read(j, group_.rows_, group_.logits_, logits_); }
    const void* guidance(int64_t j) override {
      return group_.guidance_ ? read(j, *group_.guidance_, *group_.guidance_logits_, guidance_) : nullptr;
    }

   private:
    const void* read(int64_t j, const Tensor& rows, const Tensor& all, OptionalTensor& one) {
      if (group_.kept()) return group_.at(all, row_, j);
      if (!one) one = torch::stable::new_empty(all, {1, kTileColumns});
      group_.compute(j, 1, torch::stable::narrow(const_cast<Tensor&>(rows), 0, row_, 1), *one);
      return one->data_ptr();
    }

    LibraryGroup& group_;
    int64_t row_;
    OptionalTensor logits_, guidance_;
  };

  bool kept() const { return scorer_.options().filtered(); }

  const void* at(const Tensor& logits, int64_t row, int64_t tile) const {
    return static_cast<const char*>(logits.data_ptr()) + (row * logits.stride(0) + tile * kTileColumns) * element_;
  }

  Tensor gather(const cpu::RowsView& hidden, const int32_t* index, const Tensor& like) const {
    const int64_t depth = weight_.size(1);
    Tensor rows = torch::stable::new_empty(like, {count_, depth});
    for (int64_t n = 0; n < count_; ++n)
      std::memcpy(static_cast<char*>(rows.data_ptr()) + n * depth * element_, hidden.row(index[slots_[n]]),
                  static_cast<size_t>(depth * element_));
    return rows;
  }

  void compute(int64_t first_tile, int64_t tiles, const Tensor& rows, const Tensor& out) const {
    const int64_t first = first_tile * kTileColumns;
    const int64_t columns = std::min(tiles * kTileColumns, weight_.size(0) - first);
    const auto part = [&](const Tensor& t, int64_t dim, int64_t from) {
      return torch::stable::narrow(const_cast<Tensor&>(t), dim, from, columns);
    };
    OptionalTensor bias;
    if (bias_) bias = part(*bias_, 0, first);
    linear_out(rows, part(weight_, 0, first), bias, part(out, 1, 0));
  }

  const cpu::RowScorer& scorer_;
  const cpu::ScoreRequest& request_;
  const Tensor& weight_;
  const OptionalTensor& bias_;
  const int64_t* slots_;
  int64_t count_, element_, tiles_, tiles_at_once_;
  Tensor rows_;
  OptionalTensor guidance_;
  Tensor logits_;
  OptionalTensor guidance_logits_;
  std::vector<cpu::TileRecord> records_;
};

}  // namespace

void linear_score_rows_library(const cpu::RowScorer& scorer, const cpu::ScoreRequest& request, const Tensor& hidden,
                               const Tensor& weight, const OptionalTensor& bias, const cpu::ScoreOutputs& outputs) {
  const cpu::RowGroups groups(request, scorer.options());
  for (int64_t i = 0; i < request.capacity; ++i)
    if (request.rows[i] < 0) cpu::write_score(outputs, i, cpu::kPaddingScore);
  const int64_t live = static_cast<int64_t>(groups.live.size());
  for (int64_t first = 0; first < live; first += groups.group_size) {
    LibraryGroup group(scorer, request, hidden, weight, bias, groups.live.data() + first,
                       std::min(groups.group_size, live - first));
    group.score_tiles();
    group.finish(outputs);
  }
}

}  // namespace mdlm_fast
