"""Fast-dLLM's parallel decoding without a cache (arXiv 2505.22618) in plain PyTorch.

Confidence is a float64 softmax over all positions, at temperature 0 too. The threshold rule ranks each sequence and
then visits its masked positions one by one in Python, each with a comparison that waits for a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .llada import gumbel, probability_of, with_masks


def above(confidence: Tensor, masked: Tensor, threshold: float) -> Tensor:
    """bool [B, L]: of each sequence the most confident position, and all whose confidence reaches the threshold.

    confidence: float64 [B, L], -inf where not `masked`.
    """
    chosen = torch.zeros_like(masked)
    counts = masked.sum(1)  # [B]
    for row in range(len(masked)):
        ranked = confidence[row].topk(int(counts[row])).indices
        chosen[row, ranked] = True
        for rank in range(1, len(ranked)):
            if confidence[row, ranked[rank]] < threshold:
                chosen[row, ranked[rank]] = False
    return chosen


@torch.no_grad()
def generate(
    model: Any,
    prompt: Tensor,
    *,
    gen_length: int,
    block_length: int,
    temperature: float,
    mask_id: int,
    threshold: float,
) -> Tensor:
    """Threshold decoding, each block until it holds no mask; int64 [B, P + gen_length].

    Args:
        model: called as ``model(canvas)``; its output has ``logits`` [B, L, V].
        prompt: int64 [B, P].
        temperature: 0 is greedy; torch's generator is used above.
        threshold: of the probability, from which a token is committed.
    """
    canvas = with_masks(prompt, gen_length, mask_id)
    for start in range(prompt.shape[1], canvas.shape[1], block_length):
        end = start + block_length
        while True:
            masked = canvas == mask_id  # [B, L]
            masked[:, end:] = False
            logits = model(canvas).logits  # [B, L, V]
            tokens = gumbel(logits, temperature).argmax(-1)
            confidence = probability_of(logits.to(torch.float64), tokens)
            tokens = torch.where(masked, tokens, canvas)
            confidence = torch.where(masked, confidence, -torch.inf)
            chosen = above(confidence, masked, threshold)
            canvas[chosen] = tokens[chosen]
            if not (canvas[:, start:end] == mask_id).any():
                break
    return canvas
