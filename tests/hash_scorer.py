"""Models for decode tests: logits that are a hash of the canvas, or written down in a table."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mdlm_fast import ops

VOCAB, MASK, EOS = 23, 22, 1


def hash_logits(canvas: Tensor, real: Tensor | None = None, scale: float = 7.0) -> Tensor:
    """float32 [B, L, V] logits, a function of the real tokens and the number of real tokens before each position."""
    real = torch.ones_like(canvas, dtype=torch.bool) if real is None else real.bool()
    position = real.cumsum(1) - 1
    mixed = ((canvas + 1) * (position * 7919 + 104729)) % 1000003
    digest = (mixed * real).sum(1) % 1000003
    token = torch.arange(VOCAB, dtype=torch.float64)
    angle = digest[:, None, None] * 0.0137 + position[:, :, None] * 12.9898 + token * 78.233
    noise = torch.frac(torch.sin(angle) * 43758.5453).abs()
    return (scale * noise).float()


class HashScorer:
    """Follows mdlm_fast.scoring.Scorer; counts forwards and the canvases and rows they saw."""

    mask_id, eos_ids, vocab_size, vocab_limit, tokenizer = MASK, (EOS,), VOCAB, None, None
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.scored: list[int] = []
        self.canvases: list[Tensor] = []

    scale = 7.0

    def _run(self, input_ids: Tensor, mask: Tensor | None, rows: Tensor) -> Tensor:
        self.batches.append(input_ids.shape[0])
        self.scored.append(rows.shape[0])
        self.canvases.append(input_ids.clone())
        return hash_logits(input_ids, mask, self.scale).flatten(0, 1)

    def score_rows(self, input_ids, rows, *, attention_mask=None, guidance_rows=None, guidance_scale=0.0, **options):
        logits = self._run(input_ids, attention_mask, rows)
        guidance = None if guidance_rows is None else logits
        return ops.score_rows(
            logits,
            rows,
            guidance_logits=guidance,
            guidance_rows=guidance_rows,
            guidance_scale=guidance_scale,
            **options,
        )

    def row_logits(self, input_ids, rows, *, attention_mask=None):
        return self._run(input_ids, attention_mask, rows)[rows.long()]


class TableScorer(HashScorer):
    """The same logits [L, V] for every canvas."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def _run(self, input_ids: Tensor, mask: Tensor | None, rows: Tensor) -> Tensor:
        super()._run(input_ids, mask, rows)
        return self.table.expand(input_ids.shape[0], -1, -1).flatten(0, 1)


def table_of(probabilities: list[float], tokens: list[int]) -> Tensor:
    """Logits [L, V] whose best token at position l is tokens[l], with this probability over the ids but the mask."""
    table = torch.empty(len(tokens), VOCAB, dtype=torch.float64)
    for at, (p, token) in enumerate(zip(probabilities, tokens, strict=True)):
        table[at] = math.log((1 - p) / (VOCAB - 2))
        table[at, token] = math.log(p)
        table[at, MASK] = -1e4
    return table.float()
