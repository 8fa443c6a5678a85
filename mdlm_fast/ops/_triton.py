"""The Triton backend: which function of `mdlm_fast.kernels` runs which op. Triton is imported with the first call."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from mdlm_fast.ops._registry import Backend

#: op -> module of mdlm_fast.kernels and function in it, which takes the arguments of the op's schema in order.
KERNELS: dict[str, tuple[str, str]] = {
    "score_partials": ("score_partials", "score_partials"),
    "finish_scores": ("finish_scores", "finish_scores"),
    "score_rows": ("score_rows", "score_rows"),
    "linear_score_rows": ("linear_score_rows", "linear_score_rows"),
    "select_commit_": ("select_commit", "select_commit_"),
    "remask_": ("remask", "remask_"),
    "token_logprobs": ("token_logprobs", "token_logprobs"),
    "token_logprobs_backward": ("token_logprobs", "token_logprobs_backward"),
    "linear_token_logprobs": ("linear_token_logprobs", "linear_token_logprobs"),
    "linear_token_logprobs_backward": ("linear_token_logprobs", "linear_token_logprobs_backward"),
}

_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})


def interpreting() -> bool:
    """Whether Triton runs its kernels in its interpreter, on tensors of any device (it decides at import)."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def triton_backend() -> Backend:
    """The Triton backend for CUDA tensors, and for CPU tensors where TRITON_INTERPRET=1."""
    missing = None
    if find_spec("triton") is None:
        missing = "triton is not installed; pip install 'mdlm-fast[triton]'"
    elif not interpreting() and not torch.cuda.is_available():
        missing = "torch sees no CUDA device (TRITON_INTERPRET=1 runs the kernels slowly on the CPU, to check them)"
    devices = frozenset({"cpu", "cuda"}) if interpreting() else frozenset({"cuda"})
    ops = {op: _Kernel(*place) for op, place in KERNELS.items()}
    return Backend("triton", devices=devices, dtypes=_DTYPES, ops=ops, missing=missing)


class _Kernel:
    """A function of mdlm_fast.kernels, imported when first called."""

    def __init__(self, module: str, function: str) -> None:
        self._place = (module, function)
        self._run: Any = None

    def __call__(self, *arguments: Any) -> Any:
        if self._run is None:
            module, function = self._place
            self._run = getattr(import_module(f"mdlm_fast.kernels.{module}"), function)
        return self._run(*arguments)
