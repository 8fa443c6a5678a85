"""The loop of LLaDA, EOSER and ASS on fused ops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mdlm_fast import ops
from mdlm_fast.compat._fused import Decoder, TokenAndConfidence
from mdlm_fast.compat._layout import Block
from mdlm_fast.compat._released import Forward


def check_special_ids(vocab_size: int, ids: Sequence[int]) -> None:
    """Refuses EOS options for a model whose vocabulary does not hold the ids they name."""
    if max(ids, default=-1) >= vocab_size:
        raise ValueError(
            f"logits_eos_inf and confidence_eos_eot_inf name LLaDA's token ids {tuple(ids)}, but this model has "
            f"{vocab_size} logits; turn them off"
        )


def decode_blocks(
    model: Any,
    forward: Forward,
    canvas: Tensor,
    blocks: Iterable[Block],
    *,
    mask_id: int,
    temperature: float,
    cfg_scale: float,
    random: bool,
    attention_mask: Tensor | None = None,
    never: Sequence[int] = (),
    last: Sequence[int] = (),
    eos_id: int | None = None,
    gammas: Sequence[float] | None = None,
) -> Tensor:
    """LLaDA's, EOSER's and ASS's decoder; fills ``canvas`` in place and returns it.

    random: rank by uniforms from torch's generator, drawn in the released shape and order.
    never: ids with logit -inf. last: ids that leave the normaliser once the token is chosen and get probability 0.
    eos_id, gammas: EOSER's token and its factor at each step index.
    """
    if gammas is not None and min(gammas) < 0:
        raise ValueError(f"gamma reaches {min(gammas)}; eos_min_gamma and eos_max_gamma must not be negative")
    decoder = Decoder(
        model, forward, canvas, mask_id, temperature=temperature, cfg_scale=cfg_scale, attention_mask=attention_mask
    )

    for block in blocks:
        rows = decoder.open_block(block.end)
        for index, counts in enumerate(block.quotas.T.tolist()):
            if not any(counts):
                decoder.skip()
                if random:
                    torch.rand(canvas.shape, device=canvas.device)
                continue
            if never or last:
                tokens, confidence = _score_without(decoder, rows, never, last)
                if random:
                    confidence = torch.rand(canvas.shape, device=canvas.device).flatten()[rows]
                elif last:
                    # Every predicted EOS has probability 0 here, so ties are the rule and no matter of rounding. So it
                    # is with gamma = 0 below.
                    confidence = decoder.take_as_topk(rows, confidence.exp(), counts)
            else:
                tokens, confidence = decoder.score_or_shuffle(rows, random)
            gamma = 1.0 if gammas is None else gammas[block.first_step + index]
            if eos_id is not None and gamma == 0:
                confidence = decoder.take_as_topk(rows, confidence.exp().masked_fill(tokens == eos_id, 0.0), counts)
                rows = decoder.close_step(rows, tokens, confidence, counts)
            else:
                rows = decoder.close_step(rows, tokens, confidence, counts, eos_id, gamma)
    return canvas


def _score_without(decoder: Decoder, rows: Tensor, never: Sequence[int], last: Sequence[int]) -> TokenAndConfidence:
    logits = decoder.row_logits(rows)
    check_special_ids(logits.shape[-1], (*never, *last))
    logits[:, list(never)] = -torch.inf
    scores = decoder.score_logits(logits, rows, "logp")
    assert scores.logp is not None
    if not last:
        return scores.token, scores.logp
    logits[:, list(last)] = -torch.inf
    logp, _ = ops.token_logprobs(logits, None, scores.token)
    forgone = torch.isin(scores.token, torch.tensor(last, device=rows.device))
    return scores.token, logp.masked_fill(forgone, -torch.inf)
