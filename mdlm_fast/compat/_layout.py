"""What every drop-in needs before its first step: the canvas, its blocks and the quota of each step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdlm_fast.schedules import ass_layout, ass_steps, parse_schedule, quota_plan


@dataclass(frozen=True)
class Block:
    """Canvas positions ``[start, end)`` that are active together.

    ``quotas`` is int64 ``[B, steps]`` on the host: how many tokens each row commits at each step. ``first_step`` is the
    index that the schedule gives to the block's first step.
    """

    start: int
    end: int
    quotas: Tensor
    first_step: int = 0

    @property
    def steps(self) -> int:
        return self.quotas.shape[1]


def device_of(model: Any, prompt: Tensor) -> torch.device:
    """The model's device; a plain callable without one runs where the prompt is."""
    return torch.device(getattr(model, "device", prompt.device))


def make_canvas(prompt: Tensor, gen_length: int, mask_id: int, device: torch.device) -> Tensor:
    """int64 ``[B, P + gen_length]``: the prompt ``[B, P]`` followed by masks."""
    if not isinstance(prompt, Tensor) or prompt.dim() != 2:
        shape = tuple(prompt.shape) if isinstance(prompt, Tensor) else type(prompt).__name__
        raise ValueError(f"prompt must be an integer tensor [B, P], got {shape}")
    if prompt.is_floating_point():
        raise TypeError(f"prompt must hold integer token ids, got dtype {prompt.dtype}")
    positive("gen_length", gen_length)
    canvas = torch.full((prompt.shape[0], prompt.shape[1] + gen_length), mask_id, dtype=torch.long, device=device)
    canvas[:, : prompt.shape[1]] = prompt
    return canvas


def positive(name: str, value: int) -> None:
    """Refuses a count below one."""
    if value < 1:
        raise ValueError(f"{name}={value} must be at least 1")


def check_temperature(temperature: float) -> None:
    """Refuses a negative or undefined temperature."""
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature} must not be negative")


def check_attention_mask(mask: Tensor | None, prompt: Tensor) -> None:
    """Refuses an attention mask that does not cover the prompt, position for position."""
    if mask is not None and (not isinstance(mask, Tensor) or mask.shape != prompt.shape):
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask must have the prompt's shape {tuple(prompt.shape)}, got {shape}")


def choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuses a value that is not one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, allowed))}")


def count_blocks(gen_length: int, block_length: int) -> int:
    """Number of blocks of a semi-autoregressive decode, which must divide the generated part."""
    positive("block_length", block_length)
    if gen_length % block_length:
        raise ValueError(f"block_length={block_length} does not divide gen_length={gen_length}")
    return gen_length // block_length


def even_blocks(
    canvas: Tensor, mask_id: int, gen_length: int, block_length: int, steps: int, schedule: str = "uniform"
) -> Iterator[Block]:
    """Blocks of equal length with ``steps`` steps each; ``schedule`` is "uniform" or one of `maskgit_quotas`.

    Each block is made when it is asked for, and its quotas come from the masks that ``canvas`` holds then.
    """
    for start in range(canvas.shape[1] - gen_length, canvas.shape[1], block_length):
        masks = (canvas[:, start : start + block_length] == mask_id).sum(1, keepdim=True).cpu()
        if schedule == "uniform":
            quotas = quota_plan("uniform", masks, [steps]).long()
        else:
            rows = [maskgit_quotas(schedule, count, steps) for count in masks[:, 0].tolist()]
            quotas = torch.tensor(rows, dtype=torch.int64).view(-1, steps)
        yield Block(start, start + block_length, quotas)


def ascending_blocks(prompt: Tensor, gen_length: int, block_num: int, steps: int) -> list[Block]:
    """Blocks of the ascending schedule (ASS); its step index counts through all blocks."""
    positive("block_num", block_num)
    if gen_length < 2 or steps != ass_steps(gen_length):
        wanted = ass_steps(gen_length)
        raise ValueError(
            f"steps={steps} with gen_length={gen_length}: the ascending schedule needs gen_length >= 2 and "
            f"steps = floor(log2(gen_length)) = {wanted}"
        )
    batch, start = prompt.shape
    blocks, first = [], 0
    for size, block_steps in ass_layout(gen_length, block_num):
        quotas = quota_plan("ass", torch.full((batch, 1), size), [block_steps]).long()
        blocks.append(Block(start, start + size, quotas, first))
        start, first = start + size, first + block_steps
    return blocks


def maskgit_quotas(mode: str, masks: int, steps: int) -> list[int]:
    """MDPO's MaskGIT schedules for one block that holds ``masks`` masks, in float64 (arXiv 2508.13148, 2202.04200).

    ``mode`` is "linear", "cosine", "pow<x>", "log" or "exp". They stand apart from `mdlm_fast.schedules` because a
    floor turns the last bit of a cosine into a token: the released tables come from NumPy scalars, one at a time. "log"
    is undefined for a single mask; it is revealed at the last step.
    """
    family, exponent = parse_schedule(mode)
    if family not in ("linear", "cosine", "pow", "log", "exp"):
        raise ValueError(f"mode={mode!r}: choose 'linear', 'cosine', 'pow<x>' such as 'pow2', 'log' or 'exp'")
    if masks == 0 or (masks == 1 and family == "log"):
        return [0] * (steps - 1) + [masks]
    revealed = []
    for step in range(steps):
        progress = (step + 1) / steps
        if family == "linear":
            ratio = 1 - progress
        elif family == "cosine":
            ratio = np.cos(progress * np.pi / 2)
        elif family == "pow":
            ratio = 1 - progress**exponent
        elif family == "log":
            ratio = -np.log2(progress) / np.log2(masks)
        else:
            ratio = 1 - np.exp2(-np.log2(masks) * (1 - progress))
        revealed.append(masks - int(np.floor(masks * np.clip(ratio, 1e-6, 1))))
    return [after - before for after, before in zip(revealed, [0, *revealed[:-1]], strict=True)]
