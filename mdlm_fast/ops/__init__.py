"""The ops that decoding and training are made of.

Each is a torch.library op in the namespace `mdlm_fast`: it works under torch.compile and autocast, and one of several
backends runs it ("reference" everywhere, "cpp" on the CPU, "cuda" and "triton" on GPUs). `use_backend` overrides the
choice.
"""

from __future__ import annotations

from mdlm_fast.ops._checks import ROW_FAULTS, BadLogits
from mdlm_fast.ops._library import load_compiled_backends
from mdlm_fast.ops._registry import (
    available_backends,
    backend_report,
    choose_from_environment,
    current_backend,
    register_backend,
    use_backend,
)
from mdlm_fast.ops._triton import triton_backend
from mdlm_fast.ops.finish_scores import finish_scores
from mdlm_fast.ops.head_gradient import HeadGradient
from mdlm_fast.ops.linear_score_rows import linear_score_rows
from mdlm_fast.ops.linear_token_logprobs import linear_token_logprobs
from mdlm_fast.ops.reference import reference_backend
from mdlm_fast.ops.remask_ import remask_
from mdlm_fast.ops.score_partials import score_partials
from mdlm_fast.ops.score_rows import RowScores, score_rows
from mdlm_fast.ops.select_commit_ import select_commit_
from mdlm_fast.ops.token_logprobs import token_logprobs

_cpp, _cuda = load_compiled_backends()
for _backend in (_cuda, _cpp, triton_backend(), reference_backend()):
    register_backend(_backend)
choose_from_environment()

__all__ = [
    "ROW_FAULTS",
    "BadLogits",
    "HeadGradient",
    "RowScores",
    "available_backends",
    "backend_report",
    "current_backend",
    "finish_scores",
    "linear_score_rows",
    "linear_token_logprobs",
    "remask_",
    "score_partials",
    "score_rows",
    "select_commit_",
    "token_logprobs",
    "use_backend",
]
