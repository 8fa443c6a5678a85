#include "score_readers.h"

#include <algorithm>
#include <cstring>

namespace mdlm_fast::cpu {
namespace {

// Round to nearest, ties to even.
std::uint16_t to_bfloat16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40);  // NaN stays NaN
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

std::uint16_t to_float16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const std::uint32_t sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (rest >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520 and up
  if (rest < 0x38800000u) {  // below the normal numbers: adding 0.5 rounds at their last place
    float magnitude, half = 0.5f;
    std::memcpy(&magnitude, &rest, sizeof(magnitude));
    magnitude += half;
    std::memcpy(&bits, &magnitude, sizeof(bits));
    return static_cast<std::uint16_t>(sign | (bits - 0x3f000000u));
  }
  const std::uint32_t rebiased = rest - (112u << 23);
  return static_cast<std::uint16_t>(sign | (rebiased + 0xfffu + (rebiased >> 13 & 1u)) >> 13);
}

}  // namespace

HeadReader::HeadReader(const ScoreRequest& request, const ScoreOptions& options, std::int64_t i)
    : head_(request.head), options_(options), hidden_(head_.width), weight_(head_.width) {
  const auto widen = score_kernels().widen[static_cast<int>(options.dtype)];
  const int width = static_cast<int>(head_.width);
  widen(request.logits.row(request.rows[i]), width, hidden_.data());
  if (request.guidance.data != nullptr) {
    guidance_hidden_.resize(head_.width);
    widen(request.guidance.row(request.guidance_rows[i]), width, guidance_hidden_.data());
  }
}

const void* HeadReader::tile(const std::vector<float>& hidden, std::int64_t j, float* out) {
  const auto widen = score_kernels().widen[static_cast<int>(options_.dtype)];
  const std::int64_t element = size_of(options_.dtype), first = j * kTileColumns;
  const int n = static_cast<int>(std::min<std::int64_t>(kTileColumns, options_.width - first));
  std::uint16_t* words = reinterpret_cast<std::uint16_t*>(out);
  for (int i = 0; i < n; ++i) {
    widen(head_.weight + (first + i) * head_.row_bytes, static_cast<int>(head_.width), weight_.data());
    constexpr int kLanes = 32;
    float sums[kLanes] = {}, total = 0;
    std::int64_t h = 0;
    for (; h + kLanes <= head_.width; h += kLanes)
      for (int k = 0; k < kLanes; ++k) sums[k] += hidden[h + k] * weight_[h + k];
    for (; h < head_.width; ++h) total += hidden[h] * weight_[h];
    for (int k = 0; k < kLanes; ++k) total += sums[k];
    if (head_.bias != nullptr) {
      float bias;
      widen(head_.bias + (first + i) * element, 1, &bias);
      total += bias;
    }
    if (options_.dtype == DType::kFloat32) out[i] = total;
    else words[i] = options_.dtype == DType::kBFloat16 ? to_bfloat16(total) : to_float16(total);
  }
  return out;
}

}  // namespace mdlm_fast::cpu
