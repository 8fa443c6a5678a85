"""Masks of training canvases, from random numbers that belong to a sequence and not to a batch.

Every number is a function of (the sequence's seed, pass over the rollout, position counted in real tokens, number of
the draw), in the Philox stream "training_masks". So neither padding, nor the batch, nor the process, nor torch's
generators change a mask, a resumed run draws the masks of the interrupted one, and drawing masks disturbs no other
random number. (The released trainers reset the global generators to one of 4096 seeds.)
"""

from __future__ import annotations

from torch import Tensor

from mdlm_fast.rng import derive_seed, uniform

#: The position of numbers that belong to a sequence as a whole; no canvas reaches it.
_WHOLE_SEQUENCE = 0xFFFFFFFF
#: Why a method with canvases of its own cannot weigh its tokens by what the rollout recorded.
NOT_THE_DECODERS = "the decoder recorded log-probs in its own canvases, and this method trains on others"


def position_uniforms(seeds: Tensor, attention_mask: Tensor, iteration: int, draw: int = 0) -> Tensor:
    """float64 [B, L], a number in (0, 1) for every position.

    Args:
        seeds: int64 [B].
        attention_mask: bool [B, L], False on pads, whose numbers mean nothing.
        iteration: pass over the rollout, from 0.
        draw: number of the draw in that pass.
    """
    position = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
    return uniform(derive_seed(seeds, draw)[:, None], position, iteration, "training_masks")


def mask_ratios(seeds: Tensor, iteration: int, low: float, high: float, draw: int = 0) -> Tensor:
    """float64 [B], uniform in [low, high]: the share of its tokens that a sequence's mask hides. See above."""
    u = uniform(derive_seed(seeds, draw), _WHOLE_SEQUENCE, iteration, "training_masks")
    return low + (high - low) * u


def random_masks(
    seeds: Tensor, attention_mask: Tensor, iteration: int, low: float, high: float, draw: int = 0
) -> tuple[Tensor, Tensor]:
    """(bool [B, L], float64 [B, 1]): masks that hide every position with the sequence's own probability t, and t, which
    is uniform in [low, high]."""
    ratio = mask_ratios(seeds, iteration, low, high, draw)[:, None]
    return position_uniforms(seeds, attention_mask, iteration, draw) < ratio, ratio


def repeated(iteration: int, period: int | None) -> int:
    """The number of the mask that a pass uses: its own, or with a period, that of an earlier pass.

    The released trainers of d1 and coupled-GRPO pick a mask by the count of micro-batches modulo num_iterations, so
    with gradient accumulation a micro-batch sees num_iterations / gcd(num_iterations, accumulation) of its masks
    only."""
    return iteration if period is None else iteration % period


def check_ratios(low: float, high: float) -> None:
    """Raises ValueError unless 0 < low <= high <= 1."""
    if not 0 < low <= high <= 1:
        raise ValueError(f"mask_ratio_low={low} and mask_ratio_high={high} must satisfy 0 < low <= high <= 1")


def check_period(period: int | None) -> None:
    """Raises ValueError unless the period is None or at least 1."""
    if period is not None and period < 1:
        raise ValueError(f"mask_period={period} must be at least 1, or None for a mask of its own in every pass")
