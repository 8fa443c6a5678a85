// The gradient to logits (mdlm_fast/ops/reference/token_logprobs.py), one pass over the rows.
//
// With y = z / T, p = exp(y - lse), g and h what arrives for logp and entropy H, over T:
//   dz = g 1[v = target] - p (g + h (log p + H)).
// T lse is split into a float c and a remainder, which becomes a factor near 1: z - c is exact where it matters, so
// that confident rows keep their digits. With e = (z - c) log2(e) / T, the bracket is a linear function of e.
#pragma once

#include "logit_gradient.h"
#include "score_source.cuh"

namespace mdlm_fast::cuda {

inline constexpr int kGradientThreads = 256;
inline constexpr int kGradientVectors = 2;  // of a thread

struct alignas(16) ScoreGradient {
  float center, scale;     // exponent e = (z - center) scale
  float constant, slope;   // dz = 1[v = target] target_gradient - 2^e (constant + slope e)
  float target_gradient;
  std::int32_t target;     // column, or -1 if it is not among the columns
  std::int32_t next;       // the next score of the same row, or -1
  std::int32_t unused;
};
static_assert(sizeof(ScoreGradient) == kScoreGradientBytes);

// Puts every score into a list of its row, in the order in which they happen to come. Grid: N / 256.
__global__ void __launch_bounds__(kGradientThreads)
    link_scores_kernel(const std::int32_t* rows, std::int64_t count, std::int64_t num_rows, std::int32_t* head,
                       std::int32_t* link) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kGradientThreads + threadIdx.x;
  if (i >= count) return;
  const std::int32_t row = load_constant(rows + i);
  if (row >= 0 && row < num_rows) store(link + i, atomicExch(head + row, static_cast<std::int32_t>(i)));
}

__device__ __forceinline__ bool is_allowed(const GradientInputs& inputs, std::int64_t id) {
  bool allowed = id < inputs.vocab_limit;
  for (int k = 0; k < inputs.num_forbidden; ++k) allowed &= load_constant(inputs.forbidden + k) != id;
  return allowed;
}

// The score that follows i among those of its row, by walking the row's list; the first one is written to `first`.
__device__ __forceinline__ std::int32_t next_score(std::int32_t i, std::int32_t row, const std::int32_t* head,
                                                   const std::int32_t* link, std::int32_t* first) {
  std::int32_t next = -1;
  bool is_first = true;
  for (std::int32_t j = load(head + row); j >= 0; j = load(link + j)) {
    is_first &= j >= i;
    if (j > i && (next < 0 || j < next)) next = j;
  }
  if (is_first) store(first + row, i);
  return next;
}

// Grid: N / 256. With lists: head, first [M] (-1 where there is none) and link [N].
__global__ void __launch_bounds__(kGradientThreads)
    prepare_scores_kernel(const __grid_constant__ LogitGradientParams params) {
  const GradientInputs& inputs = params.inputs;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kGradientThreads + threadIdx.x;
  if (i >= inputs.count) return;
  const std::int32_t row = load_constant(inputs.rows + i);
  if (row < 0 || row >= params.num_rows) return;
  std::int32_t next = -1;
  if (params.lists != nullptr) {
    std::int32_t *head = params.lists, *first = head + params.num_rows, *link = first + params.num_rows;
    next = next_score(static_cast<std::int32_t>(i), row, head, link, first);
  }

  const double t = static_cast<double>(load_constant(inputs.temperature + i * inputs.temperature_stride));
  const double scaled = load_constant(inputs.lse + i) * t;
  const float center = static_cast<float>(scaled);
  const double remainder = (static_cast<double>(center) - scaled) / t;
  const std::int64_t target = load_constant(inputs.targets + i);
  double grad_logp = 0.0, grad_entropy = 0.0, entropy = 0.0;
  if (is_allowed(inputs, target)) grad_logp = static_cast<double>(load_constant(inputs.grad_logp + i)) / t;
  if (inputs.grad_entropy != nullptr) {
    grad_entropy = static_cast<double>(load_constant(inputs.grad_entropy + i)) / t;
    entropy = static_cast<double>(load_constant(inputs.entropy + i));
  }
  const double factor = exp(remainder), slope = factor * grad_entropy * 0.693147180559945309;
  const std::int64_t column = target - params.vocab_start;
  const bool inside = column >= 0 && column < params.width;
  store(params.scores + i,
        ScoreGradient{center, static_cast<float>(1.442695040888963407 / t),
                      static_cast<float>(factor * (grad_logp + grad_entropy * (remainder + entropy))),
                      static_cast<float>(slope), static_cast<float>(grad_logp),
                      inside ? static_cast<std::int32_t>(column) : -1, next, 0});
}

template <class Element>
inline constexpr int kNumbersPerVector = 16 / static_cast<int>(sizeof(Element));

template <class Element>
__device__ __forceinline__ Vector narrow_vector(const float* values) {
  Vector vector;
#pragma unroll
  for (int w = 0; w < 4; ++w)
    if constexpr (sizeof(Element) == 4)
      vector.words[w] = as_bits(values[w]);
    else
      vector.words[w] = narrow_pair<Element>(values[2 * w], values[2 * w + 1]);
  return vector;
}

// Grid: M times the blocks of a row. A vector is 16 aligned bytes of the gradient's row; the first and the last may lie
// partly outside of it.
template <class Element>
__global__ void __launch_bounds__(kGradientThreads)
    logit_gradient_kernel(const __grid_constant__ LogitGradientParams params, int blocks_per_row) {
  constexpr int kNumbers = kNumbersPerVector<Element>;
  const GradientInputs& inputs = params.inputs;
  const std::int64_t row = blockIdx.x / static_cast<unsigned>(blocks_per_row);
  const int part = static_cast<int>(blockIdx.x % static_cast<unsigned>(blocks_per_row));
  Element* const gradient = static_cast<Element*>(params.gradient) + row * params.gradient_stride;
  const Element* const logits = row_of<Element>(params.logits, static_cast<std::int32_t>(row));
  const auto offset = [](const Element* p) {
    return static_cast<int>(reinterpret_cast<std::uintptr_t>(p) % 16 / sizeof(Element));
  };
  const int shift = offset(gradient);  // vector v begins at column v kNumbers - shift
  const bool aligned = offset(logits) == shift;
  const int limit = min(params.width, inputs.vocab_limit - params.vocab_start);  // columns from here on are zero

  std::int32_t score;
  if (params.lists != nullptr)
    score = load_uniform(params.lists + params.num_rows + row);
  else
    score = load_uniform(inputs.rows + row) < 0 ? -1 : static_cast<std::int32_t>(row);

  const int first = (part * kGradientVectors * kGradientThreads + static_cast<int>(threadIdx.x)) * kNumbers - shift;
  const auto column = [&](int v) { return first + v * kGradientThreads * kNumbers; };
  const auto whole = [&](int v) { return column(v) >= 0 && column(v) + kNumbers <= params.width; };
  float sums[kGradientVectors][kNumbers] = {};
  if (score >= 0) {
    Vector z[kGradientVectors];
#pragma unroll
    for (int v = 0; v < kGradientVectors; ++v) {
      if (whole(v) && aligned) {
        z[v] = load(reinterpret_cast<const Vector*>(logits + column(v)));
      } else {
        z[v] = minus_infinities<Element>();
#pragma unroll
        for (int i = 0; i < kNumbers; ++i) {
          const int c = column(v) + i;
          if (c >= 0 && c < params.width) set_number<Element>(z[v], i, bits_of(load(logits + c)));
        }
      }
    }
    do {
      const ScoreGradient s = load_uniform(params.scores + score);
#pragma unroll
      for (int v = 0; v < kGradientVectors; ++v) {
#pragma unroll
        for (int i = 0; i < kNumbers; ++i) {
          const float e = fmaxf((number<Element>(z[v], i) - s.center) * s.scale, kLeastExponent);
          sums[v][i] = fmaf(-exp2_approx(e), fmaf(e, s.slope, s.constant), sums[v][i]);
        }
        const int at = s.target - column(v);
        if (at >= 0 && at < kNumbers) {
#pragma unroll
          for (int i = 0; i < kNumbers; ++i) sums[v][i] += i == at ? s.target_gradient : 0.0f;
        }
      }
      score = s.next;
    } while (score >= 0);
  }
#pragma unroll
  for (int v = 0; v < kGradientVectors; ++v) {
    if (column(v) + kNumbers > limit) {
#pragma unroll
      for (int i = 0; i < kNumbers; ++i)
        if (column(v) + i >= limit) sums[v][i] = 0.0f;
    }
    if (whole(v)) {
      store_vector(gradient + column(v), narrow_vector<Element>(sums[v]));
    } else {
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) {
        const int c = column(v) + i;
        if (c >= 0 && c < params.width) store(gradient + c, narrow<Element>(sums[v][i]));
      }
    }
  }
  if (inputs.num_forbidden == 0) return;
  // Forbidden ids are few, so they are put right afterwards.
  __syncthreads();
  constexpr int kColumns = kGradientVectors * kGradientThreads * kNumbers;
  const std::int64_t begin = std::int64_t{part} * kColumns - shift;
  for (int k = static_cast<int>(threadIdx.x); k < inputs.num_forbidden; k += kGradientThreads) {
    const std::int64_t c = load_constant(inputs.forbidden + k) - params.vocab_start;
    if (c >= begin && c < begin + kColumns && c >= 0 && c < params.width) store(gradient + c, narrow<Element>(0.0f));
  }
}

}  // namespace mdlm_fast::cuda
