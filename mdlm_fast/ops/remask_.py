"""`remask_`: committed positions become masks again, least sure first, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from mdlm_fast.ops import _checks as checks
from mdlm_fast.ops._commit_arguments import check_canvas, contiguous_call
from mdlm_fast.ops._dispatch import define

_OP = "remask_"


def remask_(
    canvas: Tensor,
    masked: Tensor,
    running: Tensor,
    scope: Tensor,
    count: Tensor,
    *,
    mask_id: int,
    commit_step: Tensor | None = None,
    masks_left: Tensor | None = None,
    done: Tensor | None = None,
) -> None:
    """Remask the committed positions with the lowest running confidence, in place.

    Args:
        canvas: int64 [B, L], written: mask_id at the positions given back.
        masked: bool [B, L], written: True there.
        running: f32 [B, L], the confidence each position was committed with.
        scope: bool [B, L], positions that may be remasked; keep prompt and infill out of it.
        count: int32 [B], how many of scope & ~masked to give back; more than there are gives all back. Ties: the
            later position goes first, as the earlier one is committed first.
        mask_id: the id of the mask token.
        commit_step: int16 [B, L], written: -1 at the positions given back.
        masks_left: int32 [B], written with the number of masks in each canvas row. done: bool [B], written: no mask
            left.

    Raises:
        ValueError, TypeError: wrong shapes, dtypes or devices, or mask_id < 0.

    Source: running confidence remasking of MDPO (arXiv:2508.13148).
    """
    device = check_canvas(_OP, canvas, masked)
    shape = tuple(canvas.shape)
    for name, value, wanted, dtype in (
        ("running", running, shape, torch.float32),
        ("scope", scope, shape, torch.bool),
        ("count", count, shape[:1], torch.int32),
    ):
        checks.check_tensor(_OP, name, value, wanted, (dtype,), device)
    for name, optional, wanted, dtype in (
        ("commit_step", commit_step, shape, torch.int16),
        ("masks_left", masks_left, shape[:1], torch.int32),
        ("done", done, shape[:1], torch.bool),
    ):
        if optional is not None:
            checks.check_tensor(_OP, name, optional, wanted, (dtype,), device)
    if mask_id < 0:
        raise ValueError(f"{_OP}: mask_id={mask_id} must be >= 0")
    _remask_(canvas, masked, running, scope, count, mask_id, commit_step, masks_left, done)


def _run(*arguments: Tensor | int | None) -> None:
    contiguous_call(_OP, arguments)


def _fake(*arguments: Tensor | int | None) -> None:
    return None


_remask_ = define(_OP, _run, _fake)
