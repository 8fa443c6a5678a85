"""Where MDLM_FAST_SHIM_LIBRARY names a library, the CUDA kernels on the CPU are a backend too (tests/gpu_free)."""

from gpu_free.shim_library import register_from_environment

register_from_environment()
