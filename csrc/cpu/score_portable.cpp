// The kernels of score_tile.h for any processor.
#include "score_kernels.h"
#define MDLM_ISA portable
#include "simd_portable.h"
#include "score_tile.h"

namespace mdlm_fast::cpu {
constinit const ScoreKernels kScoreKernelsPortable = portable::make_kernels();
}
