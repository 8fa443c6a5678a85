"""Reference of `remask_`: give the least sure committed positions back (MDPO, arXiv:2508.13148)."""

from __future__ import annotations

import torch
from torch import Tensor

from mdlm_fast.ops.reference.select_commit_ import count_masks


def remask_(
    canvas: Tensor,
    masked: Tensor,
    running: Tensor,
    scope: Tensor,
    count: Tensor,
    mask_id: int,
    commit_step: Tensor | None,
    masks_left: Tensor | None,
    done: Tensor | None,
) -> None:
    """See `mdlm_fast.ops.remask_`. Among equals the later position goes first: the earlier is committed first."""
    candidates = scope & ~masked
    # Candidates in front, by confidence ascending; among equals the later position, so the stable sorts run backwards.
    length = canvas.shape[1]
    backwards = torch.arange(length - 1, -1, -1, device=canvas.device).expand_as(canvas)
    by_value = backwards.gather(1, running.gather(1, backwards).argsort(dim=1, stable=True))
    order = by_value.gather(1, (~candidates).gather(1, by_value).long().argsort(dim=1, stable=True))
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(length, device=canvas.device).expand_as(order))
    chosen = candidates & (rank < count[:, None])
    canvas.masked_fill_(chosen, mask_id)
    masked |= chosen
    if commit_step is not None:
        commit_step.masked_fill_(chosen, -1)
    count_masks(masked, masks_left, done)
