// The arguments of select_commit_ and remask_ as pointers, for the kernels of the CPU and of the GPU. The rules and their
// sources are described in mdlm_fast/ops/reference/.
#pragma once

#include <cstdint>

namespace mdlm_fast {

enum class Rule { kQuota, kThreshold, kFactor, kEntropyBound, kQuotaThreshold, kOrigin };
enum class Discount { kNone, kLog, kMultiply };

// Optional tensors are null pointers. B sequences, L canvas positions, C row capacity.
struct SelectCommit {
  int64_t num_sequences, length, capacity;
  int64_t* canvas;                 // [B, L]
  uint8_t* masked;                 // [B, L], 0 or 1
  const int32_t* rows;             // [C], flat canvas index b * L + l, -1 = padding
  const int64_t* token;            // [C], negative = not a candidate
  const float* confidence;         // [C]
  const float* logp;               // [C]
  const float* logp_tempered;      // [C]
  const float* entropy;            // [C]
  const int32_t* quota;            // [B]
  const float* threshold;          // [B]
  const float* gamma;              // [B]
  const int64_t* eos_ids;          // [num_eos_ids]
  int64_t num_eos_ids;
  const int32_t* row_position;     // [C], the position that keys the random stream
  const int64_t* seeds;            // [B]
  const int32_t* step;             // [1] or [B]
  int64_t step_stride;             // 0 for [1], 1 for [B]
  int16_t* commit_step;            // [B, L]
  float* commit_logp;              // [B, L]
  float* commit_logp_tempered;     // [B, L]
  float* commit_confidence;        // [B, L]
  int32_t* masks_left;             // [B]
  uint8_t* done;                   // [B]
  int32_t* next_rows;              // [C]
  int32_t* num_next_rows;          // [1]
  Rule rule;
  Discount discount;
  double position_temperature;     // 0 = the best, > 0 = Gumbel top-k over confidence / temperature
};

struct Remask {
  int64_t num_sequences, length;
  int64_t* canvas;                 // [B, L]
  uint8_t* masked;                 // [B, L]
  const float* running;            // [B, L], the confidence each token was committed with
  const uint8_t* scope;            // [B, L], positions that may be remasked
  const int32_t* count;            // [B]
  int64_t mask_id;
  int16_t* commit_step;            // [B, L]
  int32_t* masks_left;             // [B]
  uint8_t* done;                   // [B]
};

}  // namespace mdlm_fast
