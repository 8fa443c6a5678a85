"""Argument checks, and the one place that says what happens to a bad row.

Two kinds. Shapes, dtypes and devices are checked in the public functions, at no cost on the device and visible to
torch.compile. Values (ids in range, rows in range) are checked in the dispatcher implementations, on CPU tensors
only, because reading them on another device would wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mdlm_fast.ops.reference.finish_scores import EMPTY_ROW, INF_ROW, NAN_ROW

#: Floating dtypes of logits, hidden states and weights.
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

#: What a token below -1 says of its row of logits.
ROW_FAULTS = {
    NAN_ROW: "holds NaN",
    INF_ROW: "holds +inf",
    EMPTY_ROW: "has no candidate left (every id is forbidden, above vocab_limit or -inf)",
}


class BadLogits(ValueError):
    """A row of logits holds NaN or +inf, or has no candidate left."""


def check_tensor(
    op: str,
    name: str,
    value: Tensor,
    shape: tuple[int | None, ...],
    dtypes: Sequence[torch.dtype],
    device: torch.device,
) -> None:
    """Refuse a tensor of the wrong type, rank, size (None = any), dtype or device."""
    if isinstance(value, Tensor) and value.shape == shape and value.dtype in dtypes and value.device == device:
        return  # nearly always: ops are called with a score of tensors each, and what follows takes them apart
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    same = value.dim() == len(shape)
    if not same or any(want is not None and have != want for have, want in zip(value.shape, shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{op}: {name} must have shape [{wanted}], got {list(value.shape)}")
    if value.dtype not in dtypes:
        raise TypeError(f"{op}: {name} must be {' or '.join(map(str, dtypes))}, got {value.dtype}")
    if value.device != device:
        raise ValueError(f"{op}: {name} is on {value.device}, the other tensors on {device}; move it there")


def check_leading(op: str, name: str, value: Tensor) -> None:
    """Refuse anything but a floating tensor [N, X] or [B, L, X] with X >= 1."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    if value.dim() not in (2, 3) or value.shape[-1] == 0:
        raise ValueError(f"{op}: {name} must have shape [N, X] or [B, L, X] with X >= 1, got {list(value.shape)}")
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{op}: {name} must be float32, bfloat16, float16 or float64, got {value.dtype}")


def check_range(op: str, name: str, value: Tensor | None, low: int, high: int) -> None:
    """Refuse integers outside [low, high); CPU only."""
    if value is None or value.device.type != "cpu" or value.numel() == 0:
        return
    smallest, largest = torch.aminmax(value)
    if smallest.item() < low or largest.item() >= high:
        at = int(((value < low) | (value >= high)).flatten().nonzero()[0])
        raise ValueError(f"{op}: {name}[{at}] = {int(value.flatten()[at])} is outside [{low}, {high})")


def check_temperature(op: str, temperature: Tensor, *, positive: bool = False) -> None:
    """Refuse negative, infinite and NaN temperatures (and 0 with `positive`); CPU only."""
    if temperature.device.type != "cpu" or temperature.numel() == 0:
        return
    smallest, largest = (bound.item() for bound in torch.aminmax(temperature))
    if not (smallest >= 0.0 and largest < float("inf")) or (positive and smallest == 0.0):
        good = (temperature > 0 if positive else temperature >= 0) & temperature.isfinite()
        at = int((~good).nonzero()[0])
        bound = "> 0" if positive else ">= 0"
        raise ValueError(f"{op}: temperature[{at}] = {float(temperature[at])} must be finite and {bound}")


def check_tokens(op: str, token: Tensor, rows: Tensor, row_sequence: Tensor, row_position: Tensor) -> None:
    """Raise for the first row that a kernel refused.

    Kernels write a token below -1 for such a row and commit nothing. On the CPU the error is raised at once; on other
    devices reading the token would wait for the device, so the code stays in `token` (log-probs are NaN) for the
    caller to read.
    """
    if token.device.type != "cpu" or token.numel() == 0 or token.min().item() >= -1:
        return
    at = int((token < -1).nonzero()[0])
    row, sequence, position = (int(t[at]) for t in (rows, row_sequence, row_position))
    reason = ROW_FAULTS[int(token[at])]
    raise BadLogits(f"{op}: the row of logits {row} (sequence {sequence}, position {position}) {reason}")


def check_normaliser(op: str, lse: Tensor, rows: Tensor) -> None:
    """Raise for the first row whose log-sum-exp is not finite; CPU only, as `check_tokens`."""
    if lse.device.type != "cpu" or lse.numel() == 0 or torch.isfinite(lse).all().item():
        return
    at = int((~torch.isfinite(lse)).nonzero()[0])
    value = float(lse[at])
    reason = ROW_FAULTS[EMPTY_ROW if value == float("-inf") else INF_ROW if value == float("inf") else NAN_ROW]
    raise BadLogits(f"{op}: the row of logits {int(rows[at])} {reason}")
