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
    run_on = [x.contiguous() if isinstance(x, Tensor) and not x.is_contiguous() else x for x in arguments]
    call(op, run_on[0], *run_on)
    written = [(arguments[i], run_on[i]) for i in mutable_arguments(op) if arguments[i] is not None]
    for given, result in written:
        if given is not result:
            given.copy_(result)
    # Below autograd nobody else records the write.
    torch.autograd.graph.increment_version([given for given, _ in written])
