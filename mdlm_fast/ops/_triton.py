"""The Triton backend: which function of `mdlm_fast.kernels` runs which op. Triton is imported with the first call."""

from __future__ import annotations

import os
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from mdlm_fast.ops._library_gemm import PARTS
from mdlm_fast.ops._registry import Backend, Implementation

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
}

#: What the LM-head ops are made of beside these.
PART_KERNELS = {
    "merge_logprobs": ("logit_gradient", "merge_logprobs"),
    "logit_gradient_": ("logit_gradient", "logit_gradient_"),
    "head_logits": ("head_gemm", "head_logits"),
}

#: The most rows for which Triton's own GEMM is used, which stores no logits. Alone it is as fast as a library's on an
#: H200 (V = 126,464, H = 4096, bf16: 250 us); beyond 64 rows it falls behind, by 7% at 128 and 32% at 512.
FUSED_ROWS = 64

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
    kernels = {name: _Kernel(*place) for name, place in (KERNELS | PART_KERNELS).items()}
    library = {op: partial(function, *(kernels[part] for part in parts)) for op, (function, parts) in PARTS.items()}
    gradients = library["linear_token_logprobs_backward"]
    ops: dict[str, Implementation] = {op: kernels[op] for op in KERNELS}
    ops |= {
        "finish_scores": library["finish_scores"],
        "linear_score_rows": _ScoreHead(kernels["linear_score_rows"], library["linear_score_rows"]),
        "linear_token_logprobs": _LogprobHead(0, kernels["linear_token_logprobs"], library["linear_token_logprobs"]),
        "linear_token_logprobs_backward": _LogprobHead(2, partial(gradients, linear=kernels["head_logits"]), gradients),
    }
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


class _ScoreHead:
    """`linear_score_rows` with the statistics in the GEMM's epilogue where they suffice, else a library's GEMM."""

    def __init__(self, fused: Implementation, library: Implementation) -> None:
        self._fused, self._library = fused, library

    def __call__(self, *arguments: Any) -> Any:
        guidance_hidden, (top_k, top_p, _, normalize_all) = arguments[10], arguments[14:18]
        suffice = guidance_hidden is None and top_k == 0 and top_p == 1.0 and not normalize_all
        fuse = suffice and _pays(arguments[0], arguments[3])
        return (self._fused if fuse else self._library)(*arguments)


class _LogprobHead:
    """A log-prob op with Triton's GEMM or a library's: by the same rule in both passes, which need to round alike."""

    def __init__(self, hidden: int, fused: Implementation, library: Implementation) -> None:
        self._hidden, self._fused, self._library = hidden, fused, library  # hidden: the place of that argument

    def __call__(self, *arguments: Any) -> Any:
        hidden, _, _, rows = arguments[self._hidden : self._hidden + 4]
        return (self._fused if _pays(hidden, rows) else self._library)(*arguments)


def _pays(hidden: torch.Tensor, rows: torch.Tensor) -> bool:
    return rows.numel() <= FUSED_ROWS and hidden.dtype != torch.float32
