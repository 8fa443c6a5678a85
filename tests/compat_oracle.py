"""Stub models, and the published decoders written as plain loops over Python lists and float64 rows.

The loops rank with `sorted`, know each position's distribution as a NumPy row, and never ask torch for anything but the
model's logits. They hold for inputs without ties where the model does not predict the mask id.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

Row = np.ndarray
Confidence = Callable[[Row, int, int], float]


class Stub:
    """A plain callable with made-up logits that depend on every token of the canvas and, if given, on the mask.

    calls: the canvases and masks it was called with. bias: added to the logits of single ids.
    """

    def __init__(
        self,
        vocab: int = 19,
        seed: int = 0,
        scale: float = 2.0,
        bias: dict[int, float] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randn(97, 12, generator=generator)
        self.places = torch.randn(300, 12, generator=generator)
        self.weight = torch.randn(12, vocab, generator=generator) * scale / math.sqrt(12)
        self.bias, self.dtype, self.vocab = bias or {}, dtype, vocab
        self.calls: list[tuple[Tensor, Any, Any]] = []

    def __call__(self, canvas: Tensor, attention_mask: Any = None, position_ids: Any = None) -> SimpleNamespace:
        self.calls.append((canvas.clone(), attention_mask, position_ids))
        hidden = self.tokens[canvas % 97] + self.places[: canvas.shape[1]]
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
            hidden = hidden * (0.5 + attention_mask.float())[..., None]
        mixed = torch.tanh(hidden + 2 * hidden.mean(1, keepdim=True)) + 0.3 * hidden.roll(1, 1)
        logits = mixed @ self.weight
        for token, value in self.bias.items():
            logits[..., token] += value
        return SimpleNamespace(logits=logits.to(self.dtype))


class Fixed:
    """Logits that are the same for every canvas: ``table`` is one row of ``{id: logit}`` for each position."""

    def __init__(self, vocab: int, table: Sequence[dict[int, float]]) -> None:
        self.rows = torch.full((len(table), vocab), -20.0)
        for position, entries in enumerate(table):
            for token, value in entries.items():
                self.rows[position, token] = value
        self.inputs: list[Tensor] = []

    def __call__(self, canvas: Tensor, attention_mask: Any = None, position_ids: Any = None) -> SimpleNamespace:
        self.inputs.append(canvas.clone())
        return SimpleNamespace(logits=self.rows.repeat(canvas.shape[0], 1, 1))


def softmax(row: Row) -> Row:
    weights = np.exp(row - row.max())
    return weights / weights.sum()


def probability(row: Row, token: int, step: int) -> float:
    return float(softmax(row)[token])


def margin(row: Row, token: int, step: int) -> float:
    best = sorted(softmax(row), reverse=True)
    return float(best[0] - best[1])


def negative_entropy(row: Row, token: int, step: int) -> float:
    return float(sum(p * math.log(p) for p in softmax(row) if p > 0))


def rows_of(model: Any, canvas: list[list[int]], *arguments: Any, **keywords: Any) -> Row:
    """float64 ``[B, L, V]`` logits of a canvas held as lists."""
    return model(torch.tensor(canvas), *arguments, **keywords).logits.double().numpy()


def guided_rows(
    model: Any, canvas: list[list[int]], start: list[list[int]], mask_id: int, scale: float, mask: Tensor | None
) -> Row:
    """float64 logits with guidance: whatever the canvas held at the start is masked in the unconditional half."""
    if scale == 0:
        return rows_of(model, canvas, attention_mask=mask)
    blind = [
        [mask_id if first != mask_id else now for first, now in zip(*pair, strict=True)]
        for pair in zip(start, canvas, strict=True)
    ]
    both = rows_of(model, canvas + blind, attention_mask=None if mask is None else torch.cat([mask, mask]))
    half = len(canvas)
    return (scale + 1) * both[:half] - scale * both[half:]


def best_token(row: Row, mask_id: int) -> int:
    """The argmax, which must not be the mask id."""
    token = int(row.argmax())
    assert token != mask_id, "the stub predicts the mask id; these loops are not about that"
    return token


def front_loaded(masks: int, steps: int) -> list[int]:
    """LLaDA's schedule: the tokens are dealt out like cards, one a step, round after round."""
    counts = [0] * steps
    for card in range(masks):
        counts[card % steps] += 1
    return counts


def decode(
    model: Any,
    prompt: Tensor,
    layout: Sequence[tuple[int, Sequence[tuple[int, int]]]],
    mask_id: int,
    confidence: Confidence = probability,
    cfg_scale: float = 0.0,
    mask: Tensor | None = None,
    take: Callable[[list[float], int], int] = lambda ranked, count: count,
    until_done: bool = False,
) -> tuple[list[list[int]], int]:
    """Semi-autoregressive decoding; returns the canvas and the number of forward passes.

    layout: for each block its size and its steps, each a step index and a count. confidence(row, token, index).
    take(confidences from high to low, count) is how many are committed. until_done: a block's last step repeats until
    the block holds no mask.
    """
    total = sum(size for size, _ in layout)
    canvas = [row + [mask_id] * total for row in prompt.tolist()]
    start = [list(row) for row in canvas]
    if mask is not None:
        mask = torch.cat([mask, torch.ones(len(canvas), total, dtype=mask.dtype)], 1)
    end, forwards = prompt.shape[1], 0
    for size, steps in layout:
        end += size
        queue = list(steps)
        while queue:
            index, count = queue.pop(0)
            rows = guided_rows(model, canvas, start, mask_id, cfg_scale, mask)
            forwards += 1
            for line, scored in zip(canvas, rows, strict=True):
                candidates = [place for place in range(end) if line[place] == mask_id]
                tokens = {place: best_token(scored[place], mask_id) for place in candidates}
                keys = {place: confidence(scored[place], tokens[place], index) for place in candidates}
                order = sorted(candidates, key=lambda place: -keys[place])
                for place in order[: take([keys[place] for place in order], count)]:
                    line[place] = tokens[place]
            if until_done:
                finished = all(mask_id not in line[end - size : end] for line in canvas)
                queue = [] if finished else [(index, count)]
    return canvas, forwards
