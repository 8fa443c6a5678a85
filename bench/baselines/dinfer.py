"""dInfer's threshold decoding (arXiv 2510.08666) in plain PyTorch, its rule under `torch.compile`.

The rule looks at the active block alone and commits without a Python loop: all candidates whose confidence reaches the
threshold or, where none does, those within 1e-5 of the most confident. Here without its caches; the loop asks once a
step whether the block is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .llada import gumbel, probability_of, with_masks
from .score import compiled

Rule = Callable[[Tensor, Tensor, float, int, float], Tensor]

#: Confidences this close to the best count as the best.
SLACK = 1e-5


def rule(logits: Tensor, block: Tensor, temperature: float, mask_id: int, threshold: float) -> Tensor:
    """The block after a step, int64 [B, K].

    Args:
        logits: [B, K, V]; the softmax is float32.
        block: int64 [B, K]; a position whose prediction is the mask id is no candidate.
    """
    tokens = gumbel(logits, temperature).argmax(-1)
    confidence = probability_of(logits.float(), tokens)
    candidates = (block == mask_id) & (tokens != mask_id)
    confidence = torch.where(candidates, confidence, -torch.inf)
    least = (confidence.amax(1, keepdim=True) - SLACK).clamp(max=threshold)
    return torch.where(candidates & (confidence >= least), tokens, block)


def compiled_rule(logits: Tensor, block: Tensor, temperature: float, mask_id: int, threshold: float) -> Tensor:
    """`rule` under torch.compile."""
    result: Tensor = compiled(rule)(logits, block, temperature, mask_id, threshold)
    return result


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
    rule: Rule = compiled_rule,
) -> Tensor:
    """Threshold decoding, each block until it holds no mask; int64 [B, P + gen_length].

    Args:
        model: called as ``model(canvas)``; its output has ``logits`` [B, L, V].
        prompt: int64 [B, P].
        temperature: 0 is greedy; the compiler's random numbers are used above.
        threshold: of the probability, from which a token is committed.
        rule: `compiled_rule`, or `rule` itself.
    """
    canvas = with_masks(prompt, gen_length, mask_id)
    for start in range(prompt.shape[1], canvas.shape[1], block_length):
        block = canvas[:, start : start + block_length]
        while (block == mask_id).any():
            logits = model(canvas).logits[:, start : start + block_length]  # [B, K, V] of [B, L, V]
            block.copy_(rule(logits, block, temperature, mask_id, threshold))
    return canvas
