"""The token hook: the caller's own edits of the canvas after a step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mdlm_fast.batch import Batch
from mdlm_fast.canvas import check_id_range
from mdlm_fast.row_state import StepState


def apply_token_hook(
    hook: Callable[[StepState], Tensor | None],
    batch: Batch,
    step: Tensor,
    forwards: int,
    mask_id: int,
    vocab_size: int | None,
) -> None:
    """Calls ``hook`` and takes over the canvas int64 [n, L] that it returns; None changes nothing.

    At positions decoding may write, a mask token masks the position (again) and any other token that differs commits
    it, with log-probability 0: the caller chose it. Other positions keep their tokens.
    """
    state = batch.state
    canvas = hook(batch.view(step, forwards))
    if canvas is None:
        return
    if not isinstance(canvas, Tensor) or canvas.shape != state.canvas.shape or canvas.dtype != torch.int64:
        got = f"{canvas.dtype} {tuple(canvas.shape)}" if isinstance(canvas, Tensor) else type(canvas).__name__
        raise ValueError(
            f"token_hook returned {got}; it must return None or a canvas int64 {tuple(state.canvas.shape)}"
        )
    check_id_range("the canvas token_hook returned", canvas, vocab_size)
    canvas = torch.where(state.eligible, canvas, state.canvas)
    masked = state.eligible & (canvas == mask_id)
    wrote = state.eligible & ~masked & (state.masked | (canvas != state.canvas))
    state.canvas.copy_(canvas)
    state.masked.copy_(masked)
    if state.commit_step is not None:
        state.commit_step.masked_fill_(masked, -1)
        state.commit_step.copy_(torch.where(wrote, step[:, None].to(torch.int16), state.commit_step))
    for record in (state.commit_logp, state.commit_logp_T, state.commit_confidence, state.running):
        if record is not None:
            record.masked_fill_(wrote, 0.0)
