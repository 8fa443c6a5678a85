#include "linear_score.h"

#include <algorithm>

namespace mdlm_fast::cpu {
namespace {

HiddenRows gather(const LinearHead& head, const RowsView& hidden, const std::int32_t* index,
                  const std::int64_t* slots, std::int64_t count) {
  HiddenRows rows(head.dtype, count, head.depth);
  for (std::int64_t n = 0; n < count; ++n) rows.set(n, hidden.row(index[slots[n]]));
  return rows;
}

// Tile-major: tile j of row n is the 2048 entries from (j * rows + n) * 2048.
class KeptLogits {
 public:
  KeptLogits(const LinearHead& head, std::int64_t rows)
      : rows_(rows), tile_bytes_(kTileColumns * head.element()), buffer_(rows * head.tiles() * tile_bytes_) {}
  char* at(std::int64_t row, std::int64_t tile) const { return buffer_.data() + (tile * rows_ + row) * tile_bytes_; }

 private:
  std::int64_t rows_, tile_bytes_;
  Buffer<char> buffer_;
};

class KeptReader : public TileReader {
 public:
  KeptReader(const KeptLogits* logits, const KeptLogits* guidance, std::int64_t row)
      : logits_(logits), guidance_(guidance), row_(row) {}
  const void* logits(std::int64_t j) override { return logits_->at(row_, j); }
  const void* guidance(std::int64_t j) override { return guidance_ == nullptr ? nullptr : guidance_->at(row_, j); }

 private:
  const KeptLogits *logits_, *guidance_;
  std::int64_t row_;
};

// Computes a tile again for one row: the same kernel in the same order gives the same bits.
class RecomputingReader : public TileReader {
 public:
  RecomputingReader(HeadTile& head, const HiddenRows& rows, const HiddenRows* guidance, std::int64_t row)
      : head_(head), rows_(rows), guidance_rows_(guidance), row_(row) {}
  const void* logits(std::int64_t j) override { return compute(j, rows_, logits_); }
  const void* guidance(std::int64_t j) override {
    return guidance_rows_ == nullptr ? nullptr : compute(j, *guidance_rows_, guidance_);
  }

 private:
  const void* compute(std::int64_t j, const HiddenRows& rows, float* out) {
    head_.stream(j, rows, nullptr, row_, 1, out, nullptr);
    return out;
  }

  HeadTile& head_;
  const HiddenRows& rows_;
  const HiddenRows* guidance_rows_;
  std::int64_t row_;
  float logits_[kTileColumns], guidance_[kTileColumns];
};

// One group of rows: `slots` are their places in the request.
class Group {
 public:
  Group(const RowScorer& scorer, const ScoreRequest& request, const LinearHead& head, const std::int64_t* slots,
        std::int64_t count)
      : scorer_(scorer), request_(request), head_(head), slots_(slots), count_(count),
        rows_(gather(head, request.logits, request.rows, slots, count)),
        guided_(request.guidance.data != nullptr),
        guidance_(guided_ ? gather(head, request.guidance, request.guidance_rows, slots, count)
                          : HiddenRows(head.dtype, 0, head.depth)),
        records_(static_cast<std::size_t>(count * head.tiles())) {
    if (!scorer.options().filtered()) return;
    kept_ = std::make_unique<KeptLogits>(head, count);
    if (guided_) kept_guidance_ = std::make_unique<KeptLogits>(head, count);
  }

  void score_tiles(std::int64_t begin, std::int64_t end) {
    const std::int64_t at_once = std::min(count_, kRowsAtOnce);
    HeadTile head(head_);
    const std::int64_t tile_bytes = kTileColumns * head_.element();
    Buffer<char> logits(kept_ ? 0 : at_once * tile_bytes);
    Buffer<char> guidance(guided_ && !kept_ ? at_once * tile_bytes : 0);
    ScoreScratch& scratch = thread_scratch();
    for (std::int64_t tile = begin; tile < end; ++tile) {
      if (count_ > kRowsAtOnce) head.load(tile);
      for (std::int64_t first = 0; first < count_; first += kRowsAtOnce) {
        const std::int64_t rows = std::min(kRowsAtOnce, count_ - first);
        char* z = kept_ ? kept_->at(first, tile) : logits.data();
        char* g = !guided_ ? nullptr : kept_ ? kept_guidance_->at(first, tile) : guidance.data();
        if (count_ > kRowsAtOnce) {
          head.multiply(rows_, first, rows, z);
          if (guided_) head.multiply(guidance_, first, rows, g);
        } else {
          head.stream(tile, rows_, guided_ ? &guidance_ : nullptr, first, rows, z, g);
        }
        for (std::int64_t n = 0; n < rows; ++n)
          records_[(first + n) * head_.tiles() + tile] =
              scorer_.tile(row_inputs(request_, slots_[first + n]), z + n * tile_bytes,
                           guided_ ? g + n * tile_bytes : nullptr, tile, scratch);
      }
    }
  }

  void finish(std::int64_t begin, std::int64_t end, const ScoreOutputs& outputs) const {
    HeadTile head(head_);
    for (std::int64_t n = begin; n < end; ++n) {
      KeptReader kept(kept_.get(), kept_guidance_.get(), n);
      RecomputingReader recomputing(head, rows_, guided_ ? &guidance_ : nullptr, n);
      TileReader& reader = kept_ ? static_cast<TileReader&>(kept) : recomputing;
      write_score(outputs, slots_[n], scorer_.finish(row_inputs(request_, slots_[n]), &records_[n * head_.tiles()],
                                                     reader, thread_scratch()));
    }
  }

 private:
  const RowScorer& scorer_;
  const ScoreRequest& request_;
  const LinearHead& head_;
  const std::int64_t* slots_;
  std::int64_t count_;
  HiddenRows rows_;
  bool guided_;
  HiddenRows guidance_;
  std::vector<TileRecord> records_;
  std::unique_ptr<KeptLogits> kept_, kept_guidance_;
};

}  // namespace

RowGroups::RowGroups(const ScoreRequest& request, const ScoreOptions& options) {
  for (std::int64_t i = 0; i < request.capacity; ++i)
    if (request.rows[i] >= 0) live.push_back(i);
  group_size = static_cast<std::int64_t>(live.size());
  const std::int64_t row_bytes = options.tiles() * kTileColumns * static_cast<std::int64_t>(size_of(options.dtype));
  if (options.filtered()) group_size = std::min(group_size, std::max<std::int64_t>(8, kKeptBytes / row_bytes));
  group_size = std::max<std::int64_t>(group_size, 1);
}

void linear_score_rows(const RowScorer& scorer, const ScoreRequest& request, const LinearHead& head,
                       const ScoreOutputs& outputs, const ParallelFor& parallel_for) {
  const RowGroups groups(request, scorer.options());
  for (std::int64_t i = 0; i < request.capacity; ++i)
    if (request.rows[i] < 0) write_score(outputs, i, kPaddingScore);
  const std::int64_t live = static_cast<std::int64_t>(groups.live.size());
  for (std::int64_t first = 0; first < live; first += groups.group_size) {
    const std::int64_t count = std::min(groups.group_size, live - first);
    Group group(scorer, request, head, groups.live.data() + first, count);
    parallel_for(0, head.tiles(), 1, [&](std::int64_t begin, std::int64_t end) { group.score_tiles(begin, end); });
    parallel_for(0, count, 1, [&](std::int64_t begin, std::int64_t end) { group.finish(begin, end, outputs); });
  }
}

}  // namespace mdlm_fast::cpu
