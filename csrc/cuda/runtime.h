// The CUDA runtime's host types: the toolkit's, or the host shim's stand-ins (MDLM_FAST_SHIM).
#pragma once

#if defined(MDLM_FAST_SHIM)
#include "host_shim.h"  // tests/gpu_free/shim, on the include path of such a build
#else
#include <cuda_runtime_api.h>
#endif
