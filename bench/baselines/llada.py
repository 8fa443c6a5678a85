"""LLaDA's decoder (arXiv 2502.09992) in plain PyTorch.

Every step computes the logits of all positions, takes the argmax and a softmax over all of them in the logits' dtype,
and ranks each sequence in a Python loop. Above temperature 0 five [B, L, V] tensors in float64 are alive at a time: the
logits, the uniforms, their noise, the exponentials and the quotients.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def with_masks(prompt: Tensor, gen_length: int, mask_id: int) -> Tensor:
    """The canvas, int64 [B, P + gen_length]: the prompt [B, P] followed by masks."""
    canvas = torch.full((prompt.shape[0], prompt.shape[1] + gen_length), mask_id, device=prompt.device)
    canvas[:, : prompt.shape[1]] = prompt
    return canvas


def shared_out(masked: Tensor, steps: int) -> Tensor:
    """int64 [B, steps], tokens to commit at each step of a block: equal shares, remainders first.

    masked: bool [B, K], the block's masks.
    """
    count = masked.sum(1, keepdim=True)  # [B, 1]
    quota = (count // steps).repeat(1, steps)
    for row in range(len(quota)):
        quota[row, : int(count[row] % steps)] += 1
    return quota


def gumbel(logits: Tensor, temperature: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Scores [..., V] whose argmax is a draw from softmax(logits / temperature); the logits themselves at 0.

    exp(z) / (-log u)^T has the same argmax as z + T g with Gumbel noise g.
    """
    if temperature == 0:
        return logits
    logits = logits.to(dtype)
    uniform = torch.rand_like(logits)
    noise = (-uniform.log()) ** temperature
    return logits.exp() / noise


def probability_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """softmax(logits) at `tokens`, in the dtype of the logits: [..., V], [...] -> [...]."""
    return F.softmax(logits, dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def commit_best(canvas: Tensor, tokens: Tensor, confidence: Tensor, quota: Tensor) -> None:
    """Writes in each sequence the tokens of the `quota` [B] most confident positions; all else is [B, L].

    Reading a quota and writing through a mask wait for a GPU, once a sequence each.
    """
    chosen = torch.zeros_like(tokens, dtype=torch.bool)
    for row in range(len(canvas)):
        best = confidence[row].topk(int(quota[row])).indices
        chosen[row, best] = True
    canvas[chosen] = tokens[chosen]


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
) -> Tensor:
    """Low-confidence remasking, block by block; int64 [B, P + gen_length].

    Args:
        model: called as ``model(canvas, attention_mask=None)``; its output has ``logits`` [B, L, V].
        prompt: int64 [B, P].
        steps: of all blocks together.
        temperature: 0 is greedy; torch's generator is used above.
    """
    canvas = with_masks(prompt, gen_length, mask_id)
    blocks = gen_length // block_length
    for block in range(blocks):
        start = prompt.shape[1] + block * block_length
        end = start + block_length
        quota = shared_out(canvas[:, start:end] == mask_id, steps // blocks)
        for step in range(steps // blocks):
            masked = canvas == mask_id  # [B, L]
            logits = model(canvas, attention_mask=None).logits  # [B, L, V]
            tokens = gumbel(logits, temperature).argmax(-1)
            confidence = probability_of(logits, tokens)
            confidence[:, end:] = -torch.inf
            tokens = torch.where(masked, tokens, canvas)
            confidence = torch.where(masked, confidence, -torch.inf)
            commit_best(canvas, tokens, confidence, quota[:, step])
    return canvas
