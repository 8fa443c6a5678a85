"""The draw of the released RL rollouts, `sampler="gumbel_bf16"`: an exponential race whose noise is bfloat16.

d1 (arXiv 2504.12216), CJ-GRPO (arXiv 2509.23924) and one-step-GRPO take the argmax of exp(z) / (-log u)^T with u
uniform in the dtype of the model. In bfloat16 the largest u is 255/256, so the noise on a logit ends at log 256 = 5.5,
and a token further below the best one is never drawn: that is a truncated distribution, not softmax(z / T). Exact draws
(`sampler="exact"`) explore more at the same temperature.

This exists to repeat published runs. It is plain PyTorch on every device and draws a number for every id of the
vocabulary, so it is slow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdlm_fast import ops
from mdlm_fast.ops import RowScores
from mdlm_fast.rng import STREAMS, philox4x32

_WORD = 0xFFFFFFFF
#: Entries of a group of rows whose noise exists at a time.
_ENTRIES = 2**22


def bf16_uniforms(seeds: Tensor, position: Tensor, step: Tensor, width: int) -> Tensor:
    """bfloat16 [C, width], uniform numbers rounded to bfloat16, where 1 becomes 0 as in CUDA's generator.

    seeds, position, step: int64 [C]. Column v is word v % 4 of Philox with counter (position, step, token stream, 1 + v
    // 4), which no other draw uses."""
    column = torch.arange(-(-width // 4), device=seeds.device)
    stream = torch.full((), STREAMS["token"], dtype=torch.int64, device=seeds.device)
    words = philox4x32(
        (position[:, None], step[:, None], stream, 1 + column), (seeds[:, None] & _WORD, (seeds[:, None] >> 32) & _WORD)
    )
    bits = torch.stack(words, -1).flatten(1)[:, :width]
    u = ((bits.double() + 0.5) * 2.0**-32).to(torch.bfloat16)
    return u.masked_fill(u == 1, 0)


def race(logits: Tensor, temperature: Tensor, seeds: Tensor, position: Tensor, step: Tensor, allowed: Tensor) -> Tensor:
    """int64 [C], the winner of each row, ties to the lowest id.

    logits: floating [C, V]. temperature: [C], >= 0 (0 races without noise). seeds, position, step: int64 [C]. allowed:
    bool [V].
    """
    winners = []
    for index in torch.arange(logits.shape[0], device=logits.device).split(max(1, _ENTRIES // logits.shape[1])):
        u = bf16_uniforms(seeds[index], position[index], step[index], logits.shape[1])
        handicap = (-u.log()) ** temperature[index, None].to(torch.bfloat16)
        score = logits[index].to(torch.bfloat16).exp() / handicap
        winners.append(score.masked_fill(~allowed, -1.0).argmax(-1))
    return torch.cat(winners) if winners else torch.zeros(0, dtype=torch.int64, device=logits.device)


def raced_scores(logits: Tensor, rows: Tensor, options: dict[str, Any]) -> RowScores:
    """`ops.score_rows(logits, rows, **options)` with the race's tokens, and their log-probs, where the temperature is
    above 0. Statistics are those of the true distribution, as everywhere else. logits: [C, V]; rows: int32 [C], -1 =
    padding."""
    scores = ops.score_rows(logits, rows, **options)
    sequence = options["row_sequence"].long()
    temperature = options["temperature"][sequence]
    step = options["step"].long()
    allowed = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
    allowed[options["forbidden_ids"]] = False
    if options["vocab_limit"] is not None:
        allowed[options["vocab_limit"] :] = False
    token = race(
        logits,
        temperature,
        options["seeds"][sequence],
        options["row_position"].long(),
        step.expand_as(sequence) if step.numel() == 1 else step[sequence],
        allowed,
    )
    drawn = (scores.token >= 0) & (temperature > 0)
    token = torch.where(drawn, token, scores.token)
    everything = options["normalize_over"] == "all"
    normaliser = {} if everything else {k: options[k] for k in ("forbidden_ids", "vocab_limit")}
    targets = torch.where(drawn, token, -1)
    found = rows.masked_fill(~drawn, -1)

    def logp(own: Tensor | None, of: Tensor | float) -> Tensor | None:
        if own is None:
            return None
        return torch.where(drawn, ops.token_logprobs(logits, found, targets, of, **normaliser)[0], own)

    tempered = torch.where(temperature > 0, temperature, 1.0)
    return scores._replace(token=token, logp=logp(scores.logp, 1.0), logp_T=logp(scores.logp_T, tempered))
