"""Drop-in for Fast-dLLM's ``generate`` without a cache (arXiv 2505.22618)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdlm_fast.compat import _fused, _released
from mdlm_fast.compat._layout import (
    Block,
    check_temperature,
    choice,
    count_blocks,
    device_of,
    even_blocks,
    make_canvas,
    positive,
)

#: Steps in a row that may leave the canvas as it is before a decode is called endless.
STALL_LIMIT = 1000


@torch.no_grad()
def generate(
    model: Any,
    prompt: Tensor,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int = 126336,
    threshold: float | None = None,
    factor: float | None = None,
    released: bool = False,
) -> tuple[Tensor, int]:
    """Parallel decoding in blocks: each block runs until none of its positions is masked.

    Args:
        model: called as ``model(canvas)``; returns an object with ``logits`` ``[B, L, V]``.
        prompt: int64 ``[B, P]``.
        steps: forward passes of the uniform schedule, a multiple of the number of blocks; unused with ``threshold`` or
            ``factor`` except for that check.
        gen_length: a multiple of ``block_length``.
        temperature: 0 is greedy. Confidence is always the untempered probability.
        remasking: "low_confidence" or "random".
        threshold: commit every token whose confidence is at least this, and always the best one.
        factor: instead, walk the ranks r = 1, 2, ... and stop at the first whose confidence is below
            1 - factor / (r + 1); rank 1 always passes. Where only the last rank is rejected, the released code commits
            it too, and so does this one. Wins over ``threshold``.
        released: reproduce the published program to the last tie instead of running the fused path.

    Returns:
        int64 ``[B, P + gen_length]`` and the number of forward passes.

    Raises:
        ValueError: lengths that do not divide, or an unknown ``remasking``.
        RuntimeError: with ``released``, a decode that cannot end, because the model keeps predicting the mask id.
    """
    choice("remasking", remasking, ("low_confidence", "random"))
    check_temperature(temperature)
    canvas = make_canvas(prompt, gen_length, mask_id, device_of(model, prompt))
    number = count_blocks(gen_length, block_length)
    positive("steps", steps)
    if steps % number:
        raise ValueError(f"steps={steps} is not a multiple of the {number} blocks of gen_length={gen_length}")
    blocks = even_blocks(canvas, mask_id, gen_length, block_length, steps // number)
    rule = _Rule(threshold, factor)
    decode = _decode_released if released else _decode_fused
    return canvas, decode(model, canvas, blocks, mask_id, temperature, remasking == "random", rule)


class _Rule(NamedTuple):
    """How many of a row's candidates to commit, given their confidences."""

    threshold: float | None
    factor: float | None

    @property
    def dynamic(self) -> bool:
        return self.threshold is not None or self.factor is not None

    def count(self, confidence: Tensor) -> int:
        """``confidence``: probabilities ``[n]``, highest first."""
        candidates = confidence.numel()
        if candidates == 0:
            return 0
        if self.factor is None:
            threshold = -torch.inf if self.threshold is None else self.threshold
            return max(1, int((~(confidence < threshold)).sum()))
        ranks = torch.arange(1, candidates + 1, dtype=torch.float64, device=confidence.device)
        rejected = confidence.double() < 1 - self.factor / (ranks + 1)
        rejected[0] = False
        first = int(rejected.int().argmax()) if bool(rejected.any()) else candidates
        return candidates if first == candidates - 1 else first


def _decode_fused(
    model: Any, canvas: Tensor, blocks: Iterable[Block], mask_id: int, temperature: float, random: bool, rule: _Rule
) -> int:
    """Fills ``canvas``; returns the number of forward passes. A schedule that ends too early commits what is left."""
    decoder = _fused.Decoder(model, model, canvas, mask_id, temperature=temperature)
    forwards = 0
    for block in blocks:
        rows = decoder.open_block(block.end)
        schedule = block.quotas.T.tolist()
        step = 0
        while step == 0 or bool(decoder.masked[:, block.start : block.end].any()):
            tokens, confidence = decoder.score_or_shuffle(rows, random)
            if rule.dynamic:
                probability = confidence if random else confidence.double().exp()
                sequence = rows // decoder.length
                ranked = [probability[sequence == row].sort(descending=True).values for row in range(len(canvas))]
                counts = [rule.count(row) for row in ranked]
            else:
                counts = schedule[step] if step < len(schedule) else [decoder.length] * len(canvas)
            rows = decoder.close_step(rows, tokens, confidence, counts)
            step += 1
        forwards += step
    return forwards


def _decode_released(
    model: Any, canvas: Tensor, blocks: Iterable[Block], mask_id: int, temperature: float, random: bool, rule: _Rule
) -> int:
    """Fills ``canvas`` as the published loop does; returns the number of forward passes."""
    forwards = stalled = 0
    for block in blocks:
        schedule = block.quotas.T.tolist()
        step = 0
        while step == 0 or bool((canvas[:, block.start : block.end] == mask_id).any()):
            if stalled == STALL_LIMIT or (not rule.dynamic and step == len(schedule)):
                raise RuntimeError(
                    f"after {step} steps block [{block.start}, {block.end}) still holds masks and cannot finish: the "
                    f"model predicts mask_id={mask_id}, or masks in the prompt used up the schedule. The default, "
                    "released=False, never commits the mask id"
                )
            before = canvas.clone()
            candidates = canvas == mask_id
            candidates[:, block.end :] = False
            logits = _released.logits_of(model(canvas))
            tokens = _released.gumbel_scores(logits, temperature, torch.float64).argmax(-1)
            if random:
                confidence = torch.rand(tokens.shape, device=tokens.device)
            else:
                confidence = _released.probability_of(logits.double(), tokens)
            confidence = confidence.masked_fill(~candidates, -torch.inf)
            if rule.dynamic:
                _commit_dynamic(canvas, tokens, confidence, candidates.sum(1).tolist(), rule)
            else:
                _released.commit_best(canvas, tokens, confidence, schedule[step])
            step += 1
            stalled = stalled + 1 if torch.equal(before, canvas) else 0
        forwards += step
    return forwards


def _commit_dynamic(canvas: Tensor, tokens: Tensor, confidence: Tensor, candidates: list[int], rule: _Rule) -> None:
    # The tie for the best place goes to whoever torch.topk puts there, which depends on the k it is asked for: the
    # threshold rule asks for every candidate, the factor rule for those it takes.
    for row, number in enumerate(candidates):
        ranked, order = confidence[row].topk(number)
        count = rule.count(ranked)
        chosen = order[:count] if rule.factor is None else confidence[row].topk(count).indices
        canvas[row, chosen] = tokens[row, chosen]
