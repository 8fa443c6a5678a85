"""The released decoders' arithmetic in plain PyTorch, for ``released=True``.

Nothing here is fused: the point is to give the tokens of the published programs to the last tie. That fixes the dtype
of every probability, the shape and order of every random draw, `torch.topk` as the tie breaker, and the state, which is
``canvas == mask_id``: a model that predicts the mask id spends a commit on it and the position stays masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical

from mdlm_fast.compat._layout import Block

Forward = Callable[[Tensor], Any]


def logits_of(output: Any) -> Tensor:
    """Logits ``[B, L, V]`` of a model's output: an object with ``.logits``, a tuple that starts with them, or they."""
    logits = getattr(output, "logits", None)
    if logits is None:
        logits = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        raise TypeError(f"the model must return logits [B, L, V], got {type(output).__name__}")
    return logits


def with_unconditional(canvas: Tensor, given: Tensor, mask_id: int) -> Tensor:
    """The canvases of classifier-free guidance, ``[2B, L]``: as they are, then with every ``given`` token masked."""
    return torch.cat([canvas, canvas.masked_fill(given, mask_id)])


def guided_logits(forward: Forward, canvas: Tensor, given: Tensor, mask_id: int, cfg_scale: float) -> Tensor:
    """Logits ``[B, L, V]``, guided as u + (s + 1)(c - u) in the logits' own dtype when ``cfg_scale`` is positive."""
    if cfg_scale <= 0:
        return logits_of(forward(canvas))
    logits = logits_of(forward(with_unconditional(canvas, given, mask_id)))
    conditional, unconditional = logits.chunk(2)
    return unconditional + (cfg_scale + 1) * (conditional - unconditional)


def gumbel_scores(logits: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """What the argmax is taken of: the logits at T = 0, else exp(z) / (-log u)^T with u drawn in ``dtype``."""
    if temperature == 0:
        return logits
    logits = logits.to(dtype)
    return logits.exp() / (-torch.log(torch.rand_like(logits))) ** temperature


def probability_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """softmax(logits) at ``tokens`` in the dtype of ``logits``: ``[..., V], [...] -> [...]``."""
    return F.softmax(logits, dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Nucleus filter: keeps, in descending order, the ids up to and including the one whose mass passes ``top_p``."""
    ranked, order = logits.sort(descending=True)
    beyond = ranked.softmax(-1).cumsum(-1) > top_p
    drop = F.pad(beyond[..., :-1], (1, 0), value=False)
    removed = torch.zeros_like(drop).scatter_(-1, order, drop)
    return logits.masked_fill(removed, torch.finfo(logits.dtype).min)


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Keeps the ids whose logit is not below the ``top_k``-th largest."""
    pivot = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < pivot, torch.finfo(logits.dtype).min)


def filtered_probabilities(logits: Tensor, temperature: float, top_p: float | None, top_k: int | None) -> Tensor:
    """softmax after temperature, top-p and top-k, in that order, in the logits' dtype (Dream's and MDPO's)."""
    if temperature > 0:
        logits = logits / temperature
    if top_p is not None and top_p < 1:
        logits = keep_top_p(logits, top_p)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    return logits.softmax(-1)


def draw(probabilities: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Token and its probability: a categorical draw, or the most probable id at T = 0.

    The released code takes the most probable id as well wherever `Categorical` refuses the probabilities, which it does
    whenever a row of bfloat16 ones does not add up to 1.
    """
    if temperature > 0:
        try:
            tokens = Categorical(probs=probabilities).sample()
            return probabilities.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), tokens
        except (ValueError, RuntimeError):
            pass
    confidence, tokens = probabilities.max(-1)
    return confidence, tokens


def distribution_confidence(probabilities: Tensor, kind: str, otherwise: Tensor) -> Tensor:
    """Negative entropy ("entropy"), the gap of the two best ("topk_margin") or ``otherwise``; ``[..., V] -> [...]``."""
    if kind == "entropy":
        return (probabilities * torch.log(probabilities + 1e-10)).sum(-1)
    if kind == "topk_margin":
        ranked = probabilities.sort(dim=-1, descending=True).values
        return ranked[..., 0] - ranked[..., 1]
    return otherwise


def commit_best(canvas: Tensor, tokens: Tensor, confidence: Tensor, counts: Sequence[int]) -> None:
    """Writes, in each row, the tokens of the ``counts[row]`` positions with the highest confidence."""
    for row, count in enumerate(counts):
        if count > 0:
            chosen = confidence[row].topk(count).indices
            canvas[row, chosen] = tokens[row, chosen]


def decode_blocks(
    logits_at: Callable[[Tensor], Tensor],
    score: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    canvas: Tensor,
    blocks: Iterable[Block],
    mask_id: int,
) -> Tensor:
    """The loop that LLaDA, EOSER and ASS share; fills ``canvas`` in place and returns it.

    ``logits_at(canvas)`` gives the (guided) logits; ``score(logits, step)`` gives every position's token and
    confidence, where ``step`` counts from the block's ``first_step``. Masks left of the block are candidates too.
    """
    for block in blocks:
        for index, counts in enumerate(block.quotas.T.tolist()):
            masked = canvas == mask_id
            tokens, confidence = score(logits_at(canvas), block.first_step + index)
            confidence[:, block.end :] = -torch.inf
            commit_best(canvas, tokens, confidence.masked_fill(~masked, -torch.inf), counts)
    return canvas
