// The loops over one tile that the gradient of log-probabilities needs, one set per instruction set.
#pragma once

#include "score_kernels.h"

namespace mdlm_fast::cpu {

// p = weight * factor is the probability of each column, its logarithm (z - center) * inverse_temperature + log_factor.
struct GradientLoop {
  int columns;
  const float* z;
  const float* weight;
  float factor, log_factor, center, inverse_temperature;
  float grad_logp, grad_entropy, entropy;  // the gradients already divided by the temperature
};

struct GradientKernels {
  // gradient -= grad_logp p, and -= grad_entropy p (log p + entropy) too.
  void (*subtract)(const GradientLoop& loop, float* gradient);
  void (*subtract_with_entropy)(const GradientLoop& loop, float* gradient);
  // Floats to storage, to nearest even.
  void (*narrow[3])(const float* values, int columns, void* out);
};

extern const GradientKernels kGradientKernelsPortable;
#if defined(MDLM_FAST_BUILDS_AVX)
extern const GradientKernels kGradientKernelsAvx2;
extern const GradientKernels kGradientKernelsAvx512;
#endif

// The set that goes with score_kernels().
const GradientKernels& gradient_kernels();

}  // namespace mdlm_fast::cpu
