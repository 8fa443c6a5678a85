"""Running confidence remasking (MDPO, arXiv 2508.13148): masking the least confident tokens again."""

from __future__ import annotations

import torch
from torch import Tensor

from mdlm_fast import ops
from mdlm_fast.batch import Batch, WholeBatch
from mdlm_fast.config import RCR
from mdlm_fast.row_state import RowState


def note_fills(
    rcr: RCR, state: RowState, was_masked: Tensor, eos_ids: Tensor, factor: Tensor | None, discount: str
) -> None:
    """Keeps in ``state.running`` what the tokens of this step are ranked by: their confidence, discounted by EOSER.

    was_masked: bool [n, L], the masks before the step. factor: float32 [n, 1], EOSER's, or None. discount: "log" adds
    its logarithm, "multiply" multiplies.
    """
    assert state.running is not None and state.commit_confidence is not None
    fill = state.commit_confidence
    if factor is not None:
        less = fill + factor.log() if discount == "log" else fill * factor
        fill = torch.where(torch.isin(state.canvas, eos_ids), less, fill)
    if rcr.running == "max":
        fill = torch.maximum(fill, state.running)
    state.running.copy_(torch.where(was_masked & ~state.masked, fill, state.running))


def remask(rcr: RCR, batch: Batch | WholeBatch, count: Tensor, mask_id: int) -> None:
    """Masks ``count`` int32 [n] tokens of each row again, those with the lowest running confidence, in place.

    To be called after a step has filled every candidate. Only positions that decoding may write are touched: those of
    the active block, or with canvas scope of all blocks up to it.
    """
    state = batch.state
    running = state.commit_confidence if state.running is None else state.running
    assert running is not None
    block = batch.active[:, None]
    scope = state.block <= block if rcr.scope == "canvas" else state.block == block
    ops.remask_(
        state.canvas,
        state.masked,
        running,
        scope,
        count,
        mask_id=mask_id,
        commit_step=state.commit_step,
        masks_left=batch.masks_left,
        done=batch.done,
    )
