"""Running confidence remasking (MDPO, arXiv 2508.13148): masking the least confident tokens again."""

from __future__ import annotations

import torch
from torch import Tensor

from mdlm_fast import ops
from mdlm_fast.batch import Batch
from mdlm_fast.config import RCR


def remask(rcr: RCR, batch: Batch, count: Tensor, mask_id: int) -> None:
    """Masks ``count`` int32 [n] tokens of each row again, those with the lowest running confidence, in place.

    To be called after a step has filled every candidate. Only positions that decoding may write are touched: those of
    the active block, or with canvas scope of all blocks up to it.
    """
    state = batch.state
    assert state.commit_confidence is not None
    running = state.commit_confidence
    if state.running is not None:
        running = torch.maximum(state.running, state.commit_confidence, out=state.running)
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
