// Scoring one row of logits: statistics tile by tile, then token, log-probabilities, margin and entropy.
//
// Use: make a RowScorer for the call; for each row `inputs`; for each tile `record = scorer.tile(...)`, in any order
// and from anywhere (a tensor, or a GEMM's output while it is hot); then `scorer.finish(...)`. The mathematics is
// derived in mdlm_fast/ops/reference/_tiles.py; fp32 inside a tile, fp64 between tiles.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "score_kernels.h"

namespace mdlm_fast::cpu {

// Bits of `stats`.
enum Stat : int { kToken = 1, kLogp = 2, kLogpTempered = 4, kMargin = 8, kEntropy = 16 };

// What a token below 0 means.
enum RowCode : std::int64_t { kPaddingRow = -1, kNanRow = -2, kInfRow = -3, kEmptyRow = -4 };

struct ScoreOptions {
  DType dtype;                                // of the logits and the guidance logits
  std::int64_t width;                         // columns of the tensor
  std::int64_t vocab_start = 0;               // global id of column 0, a multiple of kTileColumns
  std::int64_t vocab_limit;                   // global ids at or above it are no candidates
  std::vector<std::int64_t> forbidden;        // global ids, ascending
  double guidance_scale = 0.0;                // s of (s + 1) logits - s guidance, in fp32
  int top_k = 0;                              // 0: off
  double top_p = 1.0;                         // 1: off
  bool sample = false;
  bool normalize_all = false;                 // ids that are no candidates stay in the normaliser
  bool stats_tempered = false;                // margin and entropy of the tempered and filtered distribution
  int stats = kToken;

  std::int64_t tiles() const { return (width + kTileColumns - 1) / kTileColumns; }
  bool wants(Stat stat) const { return (stats & stat) != 0; }
  bool filtered() const { return top_k > 0 || top_p < 1.0; }
  bool needs_tempered() const {
    return wants(kLogpTempered) || (stats_tempered && (wants(kMargin) || wants(kEntropy)));
  }
};

struct RowInputs {
  float temperature;       // of the row's sequence; 0 = greedy
  std::uint64_t seed;
  std::uint32_t position, step;
  float unit_temperature() const { return temperature > 0 ? temperature : 1.0f; }
};

// One tile of one row. Ids are global, -1 where there is none. `rest` is the sum over the normaliser but `top` itself,
// and so on: the 1 of a maximum never enters a sum.
struct TileRecord {
  float top;             // largest of the normaliser
  std::int32_t top_id;
  float best;            // largest candidate, the first of equals
  std::int32_t best_id;
  float second;          // second largest candidate
  float rest;            // normaliser: sum of exp(z - top)
  float mass_rest;       // candidates: sum of exp((z - best) / T)
  float moment;          // normaliser: sum of (z - top) exp(z - top), or of ((z - top) / T) exp((z - top) / T)
  float tempered_rest;   // normaliser: sum of exp((z - top) / T)
};

inline constexpr TileRecord kEmptyTile{-__builtin_inff(), -1, -__builtin_inff(), -1, -__builtin_inff(), 0, 0, 0, 0};

struct RowScore {
  std::int64_t token;
  float logp, logp_tempered, margin, entropy;
};

// Where finish() reads logits again: for a sampled row the chosen tile, with top-k or top-p every tile.
class TileReader {
 public:
  virtual ~TileReader() = default;
  // Tile j of the row: columns [2048 j, ...) of the tensor. Valid until the next call.
  virtual const void* logits(std::int64_t j) = 0;
  virtual const void* guidance(std::int64_t j) = 0;  // nullptr without guidance
};

// Buffers that a thread uses again from row to row.
struct ScoreScratch {
  alignas(64) float guidance[kTileColumns], candidates[kTileColumns], normaliser[kTileColumns];
  std::vector<TileRecord> records, filtered_records;
  std::vector<double> mass, bin_mass;
  std::vector<std::int64_t> bin_count;
  std::vector<float> row, weight;
  std::vector<std::pair<float, float>> sorted;
};

class RowScorer {
 public:
  explicit RowScorer(ScoreOptions options);

  const ScoreOptions& options() const { return options_; }

  // Statistics of tile j of a row. `guidance` may be null. The tile lies anywhere, at any alignment. `best_so_far`: the
  // largest `best` of the row's tiles that are known already; it saves looking for runners-up that do not matter.
  TileRecord tile(const RowInputs& row, const void* logits, const void* guidance, std::int64_t j,
                  ScoreScratch& scratch, float best_so_far = -__builtin_inff()) const;

  // The same with every statistic, as score_partials returns them: what finish() needs is not known yet.
  TileRecord partial(const RowInputs& row, const void* logits, const void* guidance, std::int64_t j,
                     ScoreScratch& scratch) const;

  // `records` holds the tiles of the whole vocabulary, in order. With `tempered_rest_known` false (records that came
  // through score_partials) a tempered normaliser over all ids is formed again from the logits.
  RowScore finish(const RowInputs& row, const TileRecord* records, TileReader& reader, ScoreScratch& scratch,
                  bool tempered_rest_known = true) const;

  // The only tile that finish() will read of a row without top-k and top-p, -1 if none, so that it can be computed
  // together with the same tile of other rows.
  std::int64_t drawn_tile(const RowInputs& row, const TileRecord* records, ScoreScratch& scratch) const;

 private:
  struct Plan {
    Sums raw, tempered;
    float second_above;
  };
  Plan plan(const RowInputs& row) const;
  TileRecord compute(const Plan& plan, float temperature, const void* logits, const void* guidance, std::int64_t j,
                     float pivot, ScoreScratch& scratch) const;
  int columns(std::int64_t j) const;
  // Tile j as floats in column order after guidance, -inf up to a whole block; returns the count with them.
  int values(const void* logits, const void* guidance, std::int64_t j, float* out, ScoreScratch& scratch) const;
  // The same with -inf at what is no candidate or lies below the pivot.
  int candidate_values(const void* logits, const void* guidance, std::int64_t j, float pivot, float* out,
                       ScoreScratch& scratch) const;
  template <class Element>
  void copy_tile(const Element* tile, std::int64_t j, Element minus_infinity, Element* out) const;
  template <class Element>
  void exclude(Element* tile, std::int64_t j, Element minus_infinity) const;
  bool excludes(std::int64_t j) const;
  float filter_pivot(float temperature, float best, TileReader& reader, ScoreScratch& scratch) const;
  // The first tile whose cumulative mass exceeds u times the total, else the last with mass; `residual` is what u leaves
  // of its mass, in units of its largest weight.
  std::int64_t draw_tile(const RowInputs& row, const TileRecord* records, ScoreScratch& scratch, double* residual) const;
  std::int64_t draw(const RowInputs& row, const TileRecord* records, float pivot, TileReader& reader,
                    ScoreScratch& scratch, double* logit) const;

  ScoreOptions options_;
  const ScoreKernels* kernels_;
};

}  // namespace mdlm_fast::cpu
