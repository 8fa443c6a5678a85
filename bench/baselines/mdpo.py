"""MDPO's decoder with running confidence remasking (RCR, arXiv 2508.13148) in plain PyTorch.

It takes one prompt at a time. Every step tempers, filters and normalises the logits of all positions, fills every mask
up to the block's end, then masks the least confident positions again, and copies the canvas, the predictions and the
confidences to the CPU.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .dream import draw
from .llada import with_masks


def linear_schedule(masks: int, steps: int) -> list[int]:
    """Tokens to reveal at each step: first differences of masks - floor(masks * ratio), the ratio at least 1e-6."""
    revealed = [masks - math.floor(masks * max(1 - (step + 1) / steps, 1e-6)) for step in range(steps)]
    return [after - before for before, after in zip([0, *revealed], revealed, strict=False)]


@torch.no_grad()
def generate(
    model: Any,
    prompt: Tensor,
    *,
    steps: int,
    gen_length: int,
    block_length: int,
    temperature: float,
    mask_id: int,
    top_p: float | None = None,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Linear schedule, positions by probability.

    Args:
        model: called as ``model(canvas, attention_mask=ones)``; its output has ``logits`` [1, L, V].
        prompt: int64 [1, P].
        steps: of all blocks together.
        temperature: 0 is greedy; torch's generator is used above.

    Returns:
        The generated ids, int64 [1, gen_length]; and three lists with one CPU tensor [1, gen_length] a step: the canvas
        with all masks filled, the confidence of each position's latest fill (float32, 0: never filled), the canvas that
        entered the step.
    """
    canvas = with_masks(prompt, gen_length, mask_id)
    attention_mask = torch.ones_like(canvas)
    latest = torch.zeros(canvas.shape, device=canvas.device)  # [1, L]
    predictions: list[Tensor] = []
    confidences: list[Tensor] = []
    inputs: list[Tensor] = []
    blocks = gen_length // block_length
    for block in range(blocks):
        end = prompt.shape[1] + (block + 1) * block_length
        masks = int((canvas[:, end - block_length : end] == mask_id).sum())
        quota = linear_schedule(masks, max(1, steps // blocks))
        for step in range(len(quota)):
            inputs.append(canvas[:, -gen_length:].clone().cpu())
            masked = canvas == mask_id  # [1, L]
            logits = model(canvas, attention_mask=attention_mask).logits  # [1, L, V]
            _, tokens, confidence = draw(logits, temperature, top_p)
            tokens = torch.where(masked, tokens, canvas)
            predictions.append(tokens[:, -gen_length:].clone().cpu())
            confidence[:, end:] = -torch.inf
            confidence = torch.where(masked, confidence, -torch.inf)
            filled = confidence[0].topk(sum(quota[step:])).indices
            canvas[0, filled] = tokens[0, filled]
            latest[0, filled] = confidence[0, filled].float()
            if step + 1 < len(quota):
                # A position that was never filled has confidence 0 and counts as certain.
                certain = torch.where(latest == 0.0, 1.0, latest)
                canvas[0, certain[0].topk(sum(quota[step + 1 :]), largest=False).indices] = mask_id
            confidences.append(latest[:, -gen_length:].clone().cpu())
    return canvas[:, -gen_length:], predictions, confidences, inputs
