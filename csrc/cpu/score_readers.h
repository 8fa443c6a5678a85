// Where a row's tiles come from: a tensor of logits, or hidden states and an LM head.
#pragma once

#include "score_rows.h"

namespace mdlm_fast::cpu {

class LogitsReader final : public TileReader {
 public:
  LogitsReader(const ScoreRequest& request, const ScoreOptions& options, std::int64_t i)
      : element_(size_of(options.dtype)),
        logits_(static_cast<const char*>(request.logits.row(request.rows[i]))),
        guidance_(request.guidance.data == nullptr
                      ? nullptr
                      : static_cast<const char*>(request.guidance.row(request.guidance_rows[i]))) {}
  const void* logits(std::int64_t j) override { return logits_ + j * kTileColumns * element_; }
  const void* guidance(std::int64_t j) override {
    return guidance_ == nullptr ? nullptr : guidance_ + j * kTileColumns * element_;
  }

 private:
  std::int64_t element_;
  const char* logits_;
  const char* guidance_;
};

// Computes tiles one column at a time: finish_scores needs one tile of a sampled row, or all where filters are on.
class HeadReader final : public TileReader {
 public:
  HeadReader(const ScoreRequest& request, const ScoreOptions& options, std::int64_t i);
  const void* logits(std::int64_t j) override { return tile(hidden_, j, logits_); }
  const void* guidance(std::int64_t j) override {
    return guidance_hidden_.empty() ? nullptr : tile(guidance_hidden_, j, guidance_);
  }

 private:
  const void* tile(const std::vector<float>& hidden, std::int64_t j, float* out);

  const HeadView& head_;
  const ScoreOptions& options_;
  std::vector<float> hidden_, guidance_hidden_, weight_;
  float logits_[kTileColumns], guidance_[kTileColumns];
};

}  // namespace mdlm_fast::cpu
