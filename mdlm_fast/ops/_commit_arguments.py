"""What the two in-place ops share: checks of the canvas, and calls on canvases of any strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mdlm_fast.ops._checks import check_tensor
from mdlm_fast.ops._dispatch import call
from mdlm_fast.ops._schemas import mutable_arguments


def check_canvas(op: str, canvas: Tensor, masked: Tensor) -> torch.device:
    """Refuse a canvas that is not int64 [B, L] or a `masked` that is not bool of the same shape."""
    if not isinstance(canvas, Tensor):
        raise TypeError(f"{op}: canvas must be a tensor, got {type(canvas).__name__}")
    check_tensor(op, "canvas", canvas, (None, None), (torch.int64,), canvas.device)
    check_tensor(op, "masked", masked, tuple(canvas.shape), (torch.bool,), canvas.device)
    return canvas.device


def contiguous_call(op: str, arguments: Sequence[Any]) -> None:
    """Run an in-place op. Kernels need contiguous tensors; others go through a copy that is written back."""
    given = list(arguments)
    run_on = [x.contiguous() if isinstance(x, Tensor) else x for x in given]
    call(op, run_on[0], *run_on)
    for i in mutable_arguments(op):
        if given[i] is None:
            continue
        if given[i] is not run_on[i]:
            given[i].copy_(run_on[i])
        if not given[i].is_inference():
            torch.autograd.graph.increment_version(given[i])  # below autograd nobody else records the write
