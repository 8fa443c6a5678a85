"""Scoring a whole completion in one canvas: what one-step, diffu- and coupled-GRPO have in common."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mdlm_fast.rl.chunk import Chunk
from mdlm_fast.rl.views import View, token_view


def completion_view(chunk: Chunk, canvas: Callable[[], Tensor]) -> View | None:
    """All trained tokens of all completions as predicted in one canvas each; None where there is none.

    Reduction: the mean over the tokens of everything that is normalised together.

    canvas: builds int64 [B, L].
    """
    scored = chunk.trained
    tokens = int(chunk.total(scored.sum()[None]))
    return token_view(
        canvas,
        chunk.attention_mask,
        scored,
        chunk.trajectory.sequences,
        weight=chunk.scale / max(tokens, 1),
        advantage=chunk.advantages,
        step=0,
    )
