"""The compiled library: loaded if it is there, explained if it is not."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch

from mdlm_fast.ops._registry import ENVIRONMENT_VARIABLE, Backend
from mdlm_fast.ops._schemas import SCHEMAS

LIBRARY = Path(__file__).resolve().parent.parent / "_C.abi3.so"
CPP_NAMESPACE = "mdlm_fast_cpp"

_COMPILED_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})


def load_cpp_backend(library: Path = LIBRARY) -> Backend:
    """The C++ backend for the CPU, with those ops that the compiled library has.

    A library that is absent or does not load costs one warning (none if the environment asks for the reference), and
    the reference backend takes over.
    """
    missing = _load(library)
    if missing is not None:
        if os.environ.get(ENVIRONMENT_VARIABLE) != "reference":
            warnings.warn(f"mdlm_fast runs on its slower PyTorch reference: {missing}", RuntimeWarning, stacklevel=2)
        return Backend("cpp", missing=missing)
    namespace = getattr(torch.ops, CPP_NAMESPACE)
    ops = {op: getattr(namespace, op).default for op in SCHEMAS if hasattr(namespace, op)}
    return Backend("cpp", devices=frozenset({"cpu"}), dtypes=_COMPILED_DTYPES, ops=ops)


def _load(library: Path) -> str | None:
    """Load the library; why that failed, or None."""
    if not library.exists():
        return f"the compiled library {library} does not exist; install with a C++ compiler, or run make build"
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        return f"the compiled library {library} does not load ({error}); build it again for torch {torch.__version__}"
    return None
