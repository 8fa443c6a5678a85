"""Dream's decoder (arXiv 2508.15487) in plain PyTorch.

Logits are those of all positions, and a second [B, L, V] tensor holds them shifted by one position; then the rows of
masked positions are copied out, tempered and filtered by a full sort. All sequences of a batch commit the same number
of tokens, the mean of their shares.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical

from .llada import with_masks


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Logits [N, V] with the dtype's least value outside the most probable ids that together pass `top_p`."""
    ranked, order = torch.sort(logits, descending=True)
    beyond = ranked.softmax(-1).cumsum(-1) > top_p
    beyond[..., 1:] = beyond[..., :-1].clone()  # the id that passes top_p stays
    beyond[..., 0] = False
    dropped = torch.zeros_like(beyond).scatter_(-1, order, beyond)
    return logits.masked_fill(dropped, torch.finfo(logits.dtype).min)


def draw(logits: Tensor, temperature: float, top_p: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities after temperature and filter [..., V], in the logits' dtype; tokens and their probabilities [...].

    `Categorical` refuses probabilities that do not add up to 1, which in bfloat16 they rarely do. The released code
    then takes the most probable id, silently, and so does this.
    """
    if temperature > 0:
        logits = logits / temperature
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    probabilities = logits.softmax(-1)
    if temperature > 0:
        try:
            tokens = Categorical(probs=probabilities).sample()
            return probabilities, tokens, probabilities.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        except ValueError:
            pass
    best, tokens = probabilities.max(-1)
    return probabilities, tokens, best


@torch.no_grad()
def generate(
    model: Any,
    prompt: Tensor,
    *,
    steps: int,
    gen_length: int,
    temperature: float,
    mask_id: int,
    top_p: float | None = None,
    eps: float = 1e-3,
) -> Tensor:
    """Positions by negative entropy (`alg="entropy"`), over the whole canvas; int64 [B, P + gen_length].

    Args:
        model: called as ``model(canvas, None, None)``; its output has ``logits`` [B, L, V], and row l - 1 predicts
            position l.
        prompt: int64 [B, P].
        temperature: 0 is greedy; torch's generator is used above.
        eps: the last time; step i reveals the share 1 - t[i+1] / t[i] of the masks, the last step all.
    """
    canvas = with_masks(prompt, gen_length, mask_id)
    times = torch.linspace(1, eps, steps + 1, device=canvas.device)
    for step in range(steps):
        masked = canvas == mask_id  # [B, L]
        logits = model(canvas, None, None).logits  # [B, L, V]
        logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        rows = logits[masked]  # [M, V]
        probabilities, tokens, _ = draw(rows, temperature, top_p)
        confidence = (probabilities * torch.log(probabilities + 1e-10)).sum(-1)  # [M]
        share = 1 - times[step + 1] / times[step] if step < steps - 1 else 1
        count = int(masked.sum() / len(canvas) * share)
        if count > 0:
            ranking = torch.full_like(canvas, -torch.inf, dtype=logits.dtype)
            ranking[masked] = confidence
            filled = torch.full_like(canvas, mask_id)
            filled[masked] = tokens
            best = ranking.topk(count).indices  # [B, count]
            row = torch.arange(len(canvas), device=canvas.device)[:, None]
            canvas[row, best] = filled[row, best]
    return canvas
