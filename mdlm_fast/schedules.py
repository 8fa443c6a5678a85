"""Schedules: how many tokens each denoising step reveals.

A schedule is an int32 table ``[max_masks + 1, steps]`` whose row ``m`` says how a block that holds ``m`` masks is
revealed. Every row sums to ``m``, whatever ``m`` and ``steps`` are: more steps than masks, one step and no mask are
all legal, so ragged rows and infilled blocks need no special case. Tables are computed on the host and indexed by each
row's own mask count.

Sources: uniform, LLaDA (arXiv 2502.09992); ascending step size, EOSER/ASS (arXiv 2509.23924); mask ratios, MaskGIT
(arXiv 2202.04200) as MDPO (arXiv 2508.13148) uses them; linear time, Dream (arXiv 2508.15487).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

SCHEDULES = ("uniform", "ass", "cosine", "linear", "pow<x>", "log", "exp", "dream")
DREAM_EPS = 1e-3


def parse_schedule(name: str) -> tuple[str, float]:
    """Splits a schedule's name into its family and exponent: ``"pow1.5"`` gives ``("pow", 1.5)``.

    Raises ValueError when no schedule has this name.
    """
    if not isinstance(name, str):
        raise TypeError(f"schedule must be a string, got {name!r}; choose one of {', '.join(SCHEDULES)}")
    if name in SCHEDULES and name != "pow<x>":
        return name, 1.0
    if name.startswith("pow"):
        try:
            exponent = float(name[3:])
        except ValueError:
            exponent = math.nan
        if math.isfinite(exponent) and exponent > 0:
            return "pow", exponent
        raise ValueError(f"schedule={name!r}: write a positive exponent after 'pow', such as 'pow2' or 'pow0.5'")
    raise ValueError(f"unknown schedule {name!r}; choose one of {', '.join(SCHEDULES)}")


def ass_steps(gen_length: int) -> int:
    """Steps of the ascending schedule for ``gen_length`` tokens: floor(log2 G), at least one."""
    if gen_length < 1:
        raise ValueError(f"gen_length={gen_length}: the ascending schedule needs at least one token to reveal")
    return max(1, gen_length.bit_length() - 1)


def ass_layout(gen_length: int, num_blocks: int = 1) -> list[tuple[int, int]]:
    """Blocks of the ascending schedule as ``(size, steps)`` pairs, left to right.

    The last block takes what the powers of two before it leave and is revealed in one step, a middle block is one power
    of two in one step, and the first block keeps the remaining powers, one step each.
    """
    steps = ass_steps(gen_length)
    if not 1 <= num_blocks <= steps:
        raise ValueError(
            f"num_blocks={num_blocks}: the ascending schedule has {steps} steps for gen_length={gen_length} and every "
            f"block takes at least one, so choose 1 to {steps} blocks"
        )
    if num_blocks == 1:
        return [(gen_length, steps)]
    first_steps = steps - num_blocks + 1
    middle = [(2**power, 1) for power in range(first_steps, steps - 1)]
    return [(2**first_steps - 1, first_steps), *middle, (gen_length - (2 ** (steps - 1) - 1), 1)]


def dream_timesteps(steps: int) -> Tensor:
    """Dream's times, float32 ``[steps + 1]``, from 1 down to 1e-3."""
    return torch.linspace(1, DREAM_EPS, steps + 1, dtype=torch.float32)


def dream_transfer_probabilities(steps: int) -> Tensor:
    """Dream's ``origin`` rule: the probability that a masked position is revealed at each step, float32 ``[steps]``.

    Step i has 1 - t[i+1] / t[i]; the last step reveals everything, whatever the times say.
    """
    times = dream_timesteps(steps)
    probabilities = 1 - times[1:] / times[:-1]
    probabilities[-1] = 1.0
    return probabilities


def _uniform_table(masks: Tensor, steps: int) -> Tensor:
    first_with_one_more = torch.arange(steps) < (masks % steps)[:, None]
    return (masks // steps)[:, None] + first_with_one_more


def _ascending_table(masks: Tensor, steps: int) -> Tensor:
    # 2^62 exceeds any mask count, so later powers need no larger integer.
    before = torch.tensor([2 ** min(step, 62) - 1 for step in range(steps)])
    revealed = torch.minimum(before, masks[:, None])
    return torch.cat([revealed, masks[:, None]], 1).diff(dim=1)


def _mask_ratio(family: str, exponent: float, progress: Tensor, masks: Tensor) -> Tensor:
    if family == "cosine":
        return torch.cos(math.pi * progress / 2)
    if family == "linear":
        return 1 - progress
    if family == "pow":
        return 1 - progress**exponent
    if family == "log":
        return -torch.log2(progress) / torch.log2(masks)
    return 1 - torch.exp2(-torch.log2(masks) * (1 - progress))


def _maskgit_table(family: str, exponent: float, masks: Tensor, steps: int) -> Tensor:
    count = masks.to(torch.float64)[:, None]
    progress = ((torch.arange(steps, dtype=torch.float64) + 1) / steps)[None, :]
    ratio = _mask_ratio(family, exponent, progress, count).clamp(1e-6, 1.0)
    revealed = (count - torch.floor(count * ratio)).to(torch.int64)
    # log2(m) is 0 or -inf for a single mask or none: those rows reveal what they have at the last step.
    revealed[masks <= 1] = 0
    revealed[:, -1] = masks
    return torch.cat([torch.zeros_like(masks)[:, None], revealed], 1).diff(dim=1)


def _dream_table(masks: Tensor, steps: int) -> Tensor:
    times = dream_timesteps(steps)
    left = masks.to(torch.float32)
    columns = []
    for step in range(steps - 1):
        revealed = torch.floor(left * (1 - times[step + 1] / times[step]))
        columns.append(revealed)
        left = left - revealed
    return torch.stack([*columns, left], 1).to(torch.int64)


@lru_cache(maxsize=64)
def schedule_table(schedule: str, max_masks: int, steps: int) -> Tensor:
    """The table of a schedule: int32 ``[max_masks + 1, steps]`` on the host, row m summing to m.

    ``schedule`` is "uniform", "ass", "cosine", "linear", "pow<x>" (such as "pow2"), "log", "exp" or "dream". The result
    is cached and shared: do not write to it.
    """
    family, exponent = parse_schedule(schedule)
    if max_masks < 0:
        raise ValueError(f"max_masks={max_masks} must not be negative")
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    masks = torch.arange(max_masks + 1, dtype=torch.int64)
    if family == "uniform":
        table = _uniform_table(masks, steps)
    elif family == "ass":
        table = _ascending_table(masks, steps)
    elif family == "dream":
        table = _dream_table(masks, steps)
    else:
        table = _maskgit_table(family, exponent, masks, steps)
    return table.to(torch.int32)


def quota_plan(schedule: str, masks: Tensor, steps: list[int]) -> Tensor:
    """Quotas of every row for a whole decode.

    masks: int64 ``[B, blocks]``, the masks that row b holds in each block when decoding starts.
    steps: the number of steps of each block.
    Returns int32 ``[B, sum(steps)]`` on the device of ``masks``: step s of row b reveals ``plan[b, s]`` tokens.
    """
    if masks.dim() != 2 or masks.shape[1] != len(steps):
        raise ValueError(f"masks has shape {tuple(masks.shape)}; expected [B, {len(steps)}], one column a block")
    most = int(masks.max()) if masks.numel() else 0
    parts = [
        schedule_table(schedule, most, block_steps).to(masks.device)[masks[:, block]]
        for block, block_steps in enumerate(steps)
    ]
    return torch.cat(parts, 1)
