"""The rollout of EOSER and CJ-GRPO (arXiv 2509.23924) in plain PyTorch, as the released trainers run it.

LLaDA's loop over one block, with noise and softmax in the model's dtype, EOS early rejection, and a trajectory of
copies: the canvas before and after every step, and what each step revealed. The released loop also empties the CUDA
allocator's cache at every step; that is left out here, in its favour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .llada import gumbel, probability_of, shared_out, with_masks


@dataclass(frozen=True)
class Rollout:
    """states: steps + 1 canvases, int64 [B, P + G]. revealed: for every step, bool [B, G]."""

    states: list[Tensor]
    revealed: list[Tensor]


def gamma(step: int, steps: int, low: float, high: float) -> float:
    """What the confidence of an EOS is multiplied by: rises from `low` at the first step to `high` at the last."""
    return low + (high - low) * step / (steps - 1) if steps > 1 else high


@torch.no_grad()
def rollout(
    model: Any,
    prompt: Tensor,
    *,
    steps: int,
    gen_length: int,
    temperature: float,
    mask_id: int,
    eos_id: int,
    low: float = 0.4,
    high: float = 1.0,
) -> Rollout:
    """Decodes the prompts, int64 [B, P], over the whole canvas.

    Args:
        model: called as ``model(canvas)``; its output has ``logits`` [B, L, V], and ``model.dtype`` is the noise's.
        temperature: 0 is greedy; torch's generator is used above.
        eos_id: the one id whose confidence is multiplied by `gamma`.
        low, high: bounds of gamma.
    """
    canvas = with_masks(prompt, gen_length, mask_id)
    states, revealed = [canvas.clone()], []
    quota = shared_out(canvas[:, -gen_length:] == mask_id, steps)
    for step in range(steps):
        masked = canvas == mask_id  # [B, L]
        logits = model(canvas).logits.to(model.dtype)  # [B, L, V]
        tokens = gumbel(logits, temperature, model.dtype).argmax(-1)
        confidence = probability_of(logits, tokens)
        confidence = torch.where(tokens == eos_id, confidence * gamma(step, steps, low, high), confidence)
        confidence = torch.where(masked, confidence, -torch.inf)
        tokens = torch.where(masked, tokens, canvas)
        for row in range(len(canvas)):
            best = confidence[row].topk(int(quota[row, step].item())).indices
            canvas[row, best] = tokens[row, best]
        states.append(canvas.clone())
        revealed.append((masked & (canvas != mask_id))[:, -gen_length:])
    return Rollout(states, revealed)
