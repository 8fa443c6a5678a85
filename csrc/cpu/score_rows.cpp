#include "score_rows.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>

#include "score_readers.h"

namespace mdlm_fast::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int kPartialFields = 8;
constexpr std::int64_t kColumnsPerTask = 16 * kTileColumns;  // some 20 us of work

void pack(const TileRecord& record, float* out) {
  const float fields[kPartialFields] = {record.top,    0, record.best,      0,
                                        record.second, record.rest, record.mass_rest, record.moment};
  std::memcpy(out, fields, sizeof(fields));
  std::memcpy(out + 1, &record.top_id, sizeof(record.top_id));
  std::memcpy(out + 3, &record.best_id, sizeof(record.best_id));
}

// Where every id of the normaliser is a candidate, the candidates' mass is the tempered normaliser too.
TileRecord unpack(const float* in) {
  TileRecord record{in[0], 0, in[2], 0, in[4], in[5], in[6], in[7], in[6]};
  std::memcpy(&record.top_id, in + 1, sizeof(record.top_id));
  std::memcpy(&record.best_id, in + 3, sizeof(record.best_id));
  return record;
}

}  // namespace

ScoreScratch& thread_scratch() {
  thread_local std::unique_ptr<ScoreScratch> scratch = std::make_unique<ScoreScratch>();
  return *scratch;
}

RowInputs row_inputs(const ScoreRequest& request, std::int64_t i) {
  const std::int64_t sequence = request.row_sequence[i];
  const bool keyed = request.seeds != nullptr;  // score_partials draws nothing
  return {request.temperature[sequence], keyed ? static_cast<std::uint64_t>(request.seeds[sequence]) : 0,
          keyed ? static_cast<std::uint32_t>(request.row_position[i]) : 0,
          keyed ? static_cast<std::uint32_t>(request.step[sequence * request.step_stride]) : 0};
}

void write_score(const ScoreOutputs& outputs, std::int64_t i, const RowScore& score) {
  outputs.token[i] = score.token;
  if (outputs.logp) outputs.logp[i] = score.logp;
  if (outputs.logp_tempered) outputs.logp_tempered[i] = score.logp_tempered;
  if (outputs.margin) outputs.margin[i] = score.margin;
  if (outputs.entropy) outputs.entropy[i] = score.entropy;
}

void score_rows(const RowScorer& scorer, const ScoreRequest& request, const ScoreOutputs& outputs, int threads,
                const ParallelFor& parallel_for) {
  const std::int64_t tiles = scorer.options().tiles();
  const auto finish = [&](std::int64_t i, const TileRecord* records, LogitsReader& reader, ScoreScratch& scratch) {
    write_score(outputs, i, scorer.finish(row_inputs(request, i), records, reader, scratch));
  };

  if (request.capacity >= 4 * threads || tiles == 1) {
    const std::int64_t grain = std::max<std::int64_t>(1, kColumnsPerTask / (tiles * kTileColumns));
    parallel_for(0, request.capacity, grain, [&](std::int64_t begin, std::int64_t end) {
      ScoreScratch& scratch = thread_scratch();
      scratch.records.resize(tiles);
      for (std::int64_t i = begin; i < end; ++i) {
        if (request.rows[i] < 0) {
          write_score(outputs, i, kPaddingScore);
          continue;
        }
        LogitsReader reader(request, scorer.options(), i);
        const RowInputs row = row_inputs(request, i);
        float best = kMinusInfinity;
        for (std::int64_t j = 0; j < tiles; ++j) {
          scratch.records[j] = scorer.tile(row, reader.logits(j), reader.guidance(j), j, scratch, best);
          best = std::max(best, scratch.records[j].best);
        }
        finish(i, scratch.records.data(), reader, scratch);
      }
    });
    return;
  }

  // Few rows: their tiles are shared out instead.
  std::vector<TileRecord> records(request.capacity * tiles);
  parallel_for(0, request.capacity * tiles, kColumnsPerTask / kTileColumns, [&](std::int64_t begin, std::int64_t end) {
    ScoreScratch& scratch = thread_scratch();
    for (std::int64_t k = begin; k < end; ++k) {
      const std::int64_t i = k / tiles;
      if (request.rows[i] < 0) continue;
      LogitsReader reader(request, scorer.options(), i);
      const std::int64_t j = k % tiles;
      records[k] = scorer.tile(row_inputs(request, i), reader.logits(j), reader.guidance(j), j, scratch);
    }
  });
  parallel_for(0, request.capacity, 1, [&](std::int64_t begin, std::int64_t end) {
    ScoreScratch& scratch = thread_scratch();
    for (std::int64_t i = begin; i < end; ++i) {
      if (request.rows[i] < 0) {
        write_score(outputs, i, kPaddingScore);
        continue;
      }
      LogitsReader reader(request, scorer.options(), i);
      finish(i, records.data() + i * tiles, reader, scratch);
    }
  });
}

void score_partials(const RowScorer& scorer, const ScoreRequest& request, float* partials,
                    const ParallelFor& parallel_for) {
  const std::int64_t tiles = scorer.options().tiles();
  parallel_for(0, request.capacity * tiles, kColumnsPerTask / kTileColumns, [&](std::int64_t begin, std::int64_t end) {
    ScoreScratch& scratch = thread_scratch();
    for (std::int64_t k = begin; k < end; ++k) {
      const std::int64_t i = k / tiles, j = k % tiles;
      TileRecord record = kEmptyTile;
      if (request.rows[i] >= 0) {
        LogitsReader reader(request, scorer.options(), i);
        record = scorer.partial(row_inputs(request, i), reader.logits(j), reader.guidance(j), j, scratch);
      }
      pack(record, partials + k * kPartialFields);
    }
  });
}

void finish_scores(const RowScorer& scorer, const ScoreRequest& request, const float* partials,
                   const ScoreOutputs& outputs, const ParallelFor& parallel_for) {
  const std::int64_t tiles = scorer.options().tiles();
  parallel_for(0, request.capacity, 1, [&](std::int64_t begin, std::int64_t end) {
    ScoreScratch& scratch = thread_scratch();
    scratch.records.resize(tiles);
    for (std::int64_t i = begin; i < end; ++i) {
      if (request.rows[i] < 0) {
        write_score(outputs, i, kPaddingScore);
        continue;
      }
      for (std::int64_t j = 0; j < tiles; ++j) scratch.records[j] = unpack(partials + (i * tiles + j) * kPartialFields);
      const RowInputs row = row_inputs(request, i);
      if (request.head.weight != nullptr) {
        HeadReader reader(request, scorer.options(), i);
        write_score(outputs, i, scorer.finish(row, scratch.records.data(), reader, scratch, false));
      } else {
        LogitsReader reader(request, scorer.options(), i);
        write_score(outputs, i, scorer.finish(row, scratch.records.data(), reader, scratch, false));
      }
    }
  });
}

}  // namespace mdlm_fast::cpu
