#include "linear_score.h"

#include <algorithm>

namespace mdlm_fast::cpu {
namespace {

HiddenRows gather(const LinearHead& head, const RowsView& hidden, const std::int32_t* index,
                  const std::int64_t* slots, std::int64_t count) {
  return HiddenRows(head.dtype, count, head.depth, [&](std::int64_t n) { return hidden.row(index[slots[n]]); });
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

// The one tile that is read of a row.
class OneTileReader : public TileReader {
 public:
  OneTileReader(const void* logits, const void* guidance) : logits_(logits), guidance_(guidance) {}
  const void* logits(std::int64_t) override { return logits_; }
  const void* guidance(std::int64_t) override { return guidance_; }

 private:
  const void *logits_, *guidance_;
};

// Rows whose draw reads the same tile.
struct Draws {
  std::int64_t tile;  // -1: they read none
  std::vector<std::int64_t> rows;
};

// Rows that read nothing and are finished by one task.
constexpr std::int64_t kGreedyRowsAtOnce = 8;

// One group of rows: `slots` are their places in the request.
class Group {
 public:
  Group(const RowScorer& scorer, const ScoreRequest& request, const LinearHead& head, const std::int64_t* slots,
        std::int64_t count)
      : scorer_(scorer), request_(request), head_(head), slots_(slots), count_(count),
        rows_(gather(head, request.logits, request.rows, slots, count)),
        guided_(request.guidance.data != nullptr),
        guidance_(guided_ ? gather(head, request.guidance, request.guidance_rows, slots, count)
                          : HiddenRows(head.dtype, 0, head.depth, nullptr)),
        records_(static_cast<std::size_t>(count * head.tiles())) {
    if (!scorer.options().filtered()) return;
    kept_ = std::make_unique<KeptLogits>(head, count);
    if (guided_) kept_guidance_ = std::make_unique<KeptLogits>(head, count);
  }

  void score_tiles(std::int64_t begin, std::int64_t end) {
    const std::int64_t most = head_.rows_at_once(), at_once = std::min(count_, most);
    HeadTile head(head_);
    const std::int64_t tile_bytes = kTileColumns * head_.element();
    Buffer<char> logits(kept_ ? 0 : at_once * tile_bytes);
    Buffer<char> guidance(guided_ && !kept_ ? at_once * tile_bytes : 0);
    ScoreScratch& scratch = thread_scratch();
    for (std::int64_t tile = begin; tile < end; ++tile) {
      if (count_ > most) head.load(tile);
      for (std::int64_t first = 0; first < count_; first += most) {
        const std::int64_t rows = std::min(most, count_ - first);
        char* z = kept_ ? kept_->at(first, tile) : logits.data();
        char* g = !guided_ ? nullptr : kept_ ? kept_guidance_->at(first, tile) : guidance.data();
        if (count_ > most) {
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

  void finish(const ScoreOutputs& outputs, const ParallelFor& parallel_for) const {
    if (kept_) {
      parallel_for(0, count_, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t n = begin; n < end; ++n) {
          KeptReader reader(kept_.get(), kept_guidance_.get(), n);
          finish_row(outputs, n, reader);
        }
      });
      return;
    }
    const std::vector<Draws> draws = group_by_tile();
    parallel_for(0, static_cast<std::int64_t>(draws.size()), 1, [&](std::int64_t begin, std::int64_t end) {
      HeadTile head(head_);
      for (std::int64_t k = begin; k < end; ++k) finish_draws(outputs, draws[static_cast<std::size_t>(k)], head);
    });
  }

 private:
  void finish_row(const ScoreOutputs& outputs, std::int64_t n, TileReader& reader) const {
    write_score(outputs, slots_[n], scorer_.finish(row_inputs(request_, slots_[n]), &records_[n * head_.tiles()], reader,
                                                   thread_scratch()));
  }

  std::vector<Draws> group_by_tile() const {
    std::vector<std::vector<std::int64_t>> rows(static_cast<std::size_t>(head_.tiles() + 1));  // of no tile, of tile 0, ...
    for (std::int64_t n = 0; n < count_; ++n) {
      const std::int64_t tile =
          scorer_.drawn_tile(row_inputs(request_, slots_[n]), &records_[n * head_.tiles()], thread_scratch());
      rows[static_cast<std::size_t>(tile + 1)].push_back(n);
    }
    std::vector<Draws> draws;
    for (std::int64_t tile = -1; tile < head_.tiles(); ++tile) {
      const std::vector<std::int64_t>& all = rows[static_cast<std::size_t>(tile + 1)];
      const std::size_t most = static_cast<std::size_t>(tile < 0 ? kGreedyRowsAtOnce : head_.rows_at_once());
      for (std::size_t first = 0; first < all.size(); first += most)
        draws.push_back({tile, {all.begin() + static_cast<std::ptrdiff_t>(first),
                                all.begin() + static_cast<std::ptrdiff_t>(std::min(first + most, all.size()))}});
    }
    return draws;
  }

  // Computes a tile again for some of the rows: the same kernel in the same order gives the same bits.
  void finish_draws(const ScoreOutputs& outputs, const Draws& draws, HeadTile& head) const {
    const std::int64_t count = static_cast<std::int64_t>(draws.rows.size()), tile_bytes = kTileColumns * head_.element();
    const std::int64_t computed = draws.tile < 0 ? 0 : count;
    const auto some_of = [&](const HiddenRows& all, std::int64_t rows) {
      return HiddenRows(head_.dtype, rows, head_.depth,
                        [&](std::int64_t k) { return all.from(draws.rows[static_cast<std::size_t>(k)]).data; });
    };
    Buffer<char> logits(computed * tile_bytes), guidance(guided_ ? computed * tile_bytes : 0);
    if (computed > 0) {
      const HiddenRows rows = some_of(rows_, computed), guidance_rows = some_of(guidance_, guided_ ? computed : 0);
      head.stream(draws.tile, rows, guided_ ? &guidance_rows : nullptr, 0, computed, logits.data(), guidance.data());
    }
    for (std::int64_t k = 0; k < count; ++k) {
      OneTileReader reader(logits.data() + k * tile_bytes, guided_ ? guidance.data() + k * tile_bytes : nullptr);
      finish_row(outputs, draws.rows[static_cast<std::size_t>(k)], reader);
    }
  }

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
    group.finish(outputs, parallel_for);
  }
}

}  // namespace mdlm_fast::cpu
