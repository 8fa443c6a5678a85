"""The compiled library: loaded if it is there, explained if it is not."""

from __future__ import annotations

import os
import warnings
from functools import partial
from pathlib import Path

import torch

from mdlm_fast.ops._library_gemm import PARTS
from mdlm_fast.ops._registry import ENVIRONMENT_VARIABLE, Backend, Implementation
from mdlm_fast.ops._schemas import SCHEMAS

LIBRARY = Path(__file__).resolve().parent.parent / "_C.abi3.so"
CPP_NAMESPACE = "mdlm_fast_cpp"
CUDA_NAMESPACE = "mdlm_fast_cuda"

_COMPILED_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})


def load_compiled_backends(library: Path = LIBRARY) -> tuple[Backend, Backend]:
    """The C++ backend for the CPU and the CUDA backend, with those ops that the compiled library has.

    A library that is absent or does not load costs one warning (none if the environment asks for another backend), and
    the other backends take over.
    """
    missing = _load(library)
    if missing is not None:
        if os.environ.get(ENVIRONMENT_VARIABLE) not in ("reference", "triton"):
            warnings.warn(f"mdlm_fast runs on its slower PyTorch reference: {missing}", RuntimeWarning, stacklevel=2)
        return Backend("cpp", missing=missing), Backend("cuda", missing=missing)
    cpp = Backend("cpp", frozenset({"cpu"}), _COMPILED_DTYPES, compiled_ops(CPP_NAMESPACE))
    return cpp, cuda_backend()


def cuda_backend() -> Backend:
    """The CUDA kernels, from whatever library that is loaded has them."""
    ops, missing = compiled_ops(CUDA_NAMESPACE), None
    if not ops:
        missing = "the compiled library has no CUDA kernels, as nvcc was not found; set CUDA_HOME and build again"
    elif not torch.cuda.is_available():
        missing = "torch sees no CUDA device"
    return Backend("cuda", frozenset({"cuda"}), _COMPILED_DTYPES, ops, missing)


def compiled_ops(namespace: str) -> dict[str, Implementation]:
    """The ops of `SCHEMAS` that a loaded library defines in `namespace`, and the LM-head ops that they make up."""
    found = getattr(torch.ops, namespace)
    ops: dict[str, Implementation] = {op: getattr(found, op).default for op in SCHEMAS if hasattr(found, op)}
    if "linear_score_rows" not in ops:  # a library of kernels on logits: what starts from hidden states is made of them
        for op, (function, parts) in PARTS.items():
            if all(hasattr(found, part) for part in parts):
                ops[op] = partial(function, *(getattr(found, part).default for part in parts))
    return ops


def _load(library: Path) -> str | None:
    """Load the library; why that failed, or None."""
    if not library.exists():
        return f"the compiled library {library} does not exist; install with a C++ compiler, or run make build"
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        return f"the compiled library {library} does not load ({error}); build it again for torch {torch.__version__}"
    return None
