"""Drop-in for MDPO's ``diffusion_generate``, with running confidence remasking (arXiv 2508.13148)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mdlm_fast import ops
from mdlm_fast.compat import _fused, _released
from mdlm_fast.compat._layout import Block, check_temperature, count_blocks, even_blocks, make_canvas, positive

Intermediates = tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]


@torch.no_grad()
def diffusion_generate(
    model: Any,
    prompt: Tensor,
    mask_id: int,
    prompt_mask: Tensor | None = None,
    steps: int = 64,
    gen_length: int = 128,
    block_length: int = 32,
    temperature: float = 0.0,
    conf_alg: str = "random",
    mode: str = "linear",
    rcr: bool = False,
    top_p: float | None = None,
    top_k: int | None = None,
    released: bool = False,
) -> Intermediates:
    """MDPO's decoder: MaskGIT schedules, tempered and filtered confidence, optional remasking.

    With ``rcr`` every step fills all masked positions up to the block's end and then masks again, over the whole canvas
    and so in earlier blocks too, the positions filled with the least confidence; a position's confidence is the one
    of its latest fill.

    Args:
        model: called as ``model(canvas, attention_mask=mask)`` with an int64 mask ``[B, L]``; returns an object with
            ``logits`` ``[B, L, V]``. A model that shifts its logits does so inside.
        prompt: int64 ``[B, P]`` (the published function takes B = 1 only).
        prompt_mask: ``[B, P]``; default all ones.
        steps: shared out over the blocks, rounded down, at least one a block.
        gen_length: a multiple of ``block_length``.
        temperature: 0 is greedy. Confidence is that of the tempered, filtered distribution.
        conf_alg: "entropy" (negative entropy), "topk_margin" (gap of the two best), "random" (uniform confidences: the
            published function stops with an error there), anything else is the token's probability.
        mode: schedule, "linear", "cosine", "pow<x>", "log" or "exp".
        top_p, top_k: filters, applied in this order after the temperature, at temperature 0 too. Of ids tied for the
            last place in ``top_p`` the published function keeps as many as it needs, the fused path all of them.
        released: reproduce the published program to the last tie instead of running the fused path.

    Returns:
        The generated ids ``[B, gen_length]``, and three lists with one CPU tensor ``[B, gen_length]`` a step: the
        canvas with every mask filled by that step's prediction; confidences (the probability of the predicted token;
        with ``rcr``, float32, that of each position's latest fill and 0 where there was none); the canvas that entered
        the step.
    """
    canvas = make_canvas(prompt, gen_length, mask_id, prompt.device)
    number = count_blocks(gen_length, block_length)
    check_temperature(temperature)
    positive("steps", steps)
    blocks = even_blocks(canvas, mask_id, gen_length, block_length, max(1, steps // number), mode)
    attention_mask = torch.ones_like(canvas)
    if prompt_mask is not None:
        attention_mask[:, : prompt_mask.shape[1]] = prompt_mask

    def forward(canvases: Tensor) -> Any:
        return model(canvases, attention_mask=attention_mask)

    decoder: _Steps
    if released:
        decoder = _Released(canvas, mask_id, gen_length, forward, temperature, conf_alg, top_p, top_k)
    else:
        state = _fused.Decoder(
            model,
            forward,
            canvas,
            mask_id,
            temperature=temperature,
            attention_mask=attention_mask,
            top_k=top_k,
            top_p=top_p,
        )
        decoder = _Fused(canvas, mask_id, gen_length, state, conf_alg)
    return decoder.run(blocks, rcr)


class _Steps(ABC):
    """The loop and its records; how a step predicts and ranks is a subclass's business."""

    def __init__(self, canvas: Tensor, mask_id: int, gen_length: int) -> None:
        self.canvas, self.mask_id, self.gen_length = canvas, mask_id, gen_length
        self.predictions: list[Tensor] = []
        self.confidences: list[Tensor] = []
        self.inputs: list[Tensor] = []

    def generated(self, values: Tensor) -> Tensor:
        """A copy of the generated part on the CPU."""
        return values[:, -self.gen_length :].clone().cpu()

    def run(self, blocks: Iterable[Block], rcr: bool) -> Intermediates:
        for block in blocks:
            # With remasking, step i fills the quotas of steps i.. and masks those of steps i+1.. again.
            ahead = block.quotas.flip(1).cumsum(1).flip(1)
            for index in range(block.steps):
                self.inputs.append(self.generated(self.canvas))
                self.fill(block.end, (ahead if rcr else block.quotas)[:, index].tolist(), rcr)
                if rcr:
                    if index + 1 < block.steps:
                        self.remask(ahead[:, index + 1].tolist())
                    self.confidences.append(self.generated(self.latest_confidence()))
        return self.canvas[:, -self.gen_length :], self.predictions, self.confidences, self.inputs

    @abstractmethod
    def fill(self, end: int, counts: list[int], rcr: bool) -> None:
        """Predicts, records the prediction (and its confidence without ``rcr``), and commits the best ``counts``."""

    @abstractmethod
    def remask(self, counts: list[int]) -> None:
        """Masks the ``counts[b]`` least confident filled positions of each row again."""

    @abstractmethod
    def latest_confidence(self) -> Tensor:
        """float32 ``[B, L]``: the confidence of each position's latest fill, 0 where there was none."""


class _Released(_Steps):
    def __init__(
        self,
        canvas: Tensor,
        mask_id: int,
        gen_length: int,
        forward: _released.Forward,
        temperature: float,
        conf_alg: str,
        top_p: float | None,
        top_k: int | None,
    ) -> None:
        super().__init__(canvas, mask_id, gen_length)
        self.forward, self.temperature, self.conf_alg = forward, temperature, conf_alg
        self.top_p, self.top_k = top_p, top_k
        self.running = torch.zeros_like(canvas, dtype=torch.float32)

    def fill(self, end: int, counts: list[int], rcr: bool) -> None:
        masked = self.canvas == self.mask_id
        logits = _released.logits_of(self.forward(self.canvas))
        probabilities = _released.filtered_probabilities(logits, self.temperature, self.top_p, self.top_k)
        confidence, tokens = _released.draw(probabilities, self.temperature)
        if not rcr:
            self.confidences.append(self.generated(confidence))
        if self.conf_alg == "random":
            confidence = torch.rand(tokens.shape, device=tokens.device)
        confidence = _released.distribution_confidence(probabilities, self.conf_alg, confidence)
        confidence[:, end:] = -torch.inf
        confidence = confidence.masked_fill(~masked, -torch.inf)
        tokens = torch.where(masked, tokens, self.canvas)
        self.predictions.append(self.generated(tokens))
        for row, count in enumerate(counts):
            chosen = confidence[row].topk(count).indices
            self.canvas[row, chosen] = tokens[row, chosen]
            self.running[row, chosen] = confidence[row, chosen].float()

    def remask(self, counts: list[int]) -> None:
        # The released code knows a position that was never filled by its 0.0 and ranks it as 1.0, so that a confidence
        # of exactly 0 counts as the highest and one that rounds to 1 ties with the prompt.
        ranking = torch.where(self.running == 0.0, 1.0, self.running)
        for row, count in enumerate(counts):
            self.canvas[row, ranking[row].topk(count, largest=False).indices] = self.mask_id

    def latest_confidence(self) -> Tensor:
        return self.running


class _Fused(_Steps):
    def __init__(self, canvas: Tensor, mask_id: int, gen_length: int, decoder: _fused.Decoder, conf_alg: str) -> None:
        super().__init__(canvas, mask_id, gen_length)
        self.decoder, self.conf_alg = decoder, conf_alg
        self.eligible = decoder.masked.clone()
        #: With mask ids in the prompt, a step fills fewer positions than are masked.
        self.surplus = bool(decoder.masked[:, :-gen_length].any())
        self.filled = torch.zeros_like(decoder.masked)
        self.ranking = torch.zeros_like(canvas, dtype=torch.float32)

    def fill(self, end: int, counts: list[int], rcr: bool) -> None:
        decoder = self.decoder
        masked = decoder.masked.clone()
        returned = masked.clone()
        if not rcr:
            returned[:, -self.gen_length :] = True
        rows = returned.flatten().nonzero()[:, 0].int()
        if rows.numel() == 0:
            decoder.skip()
            self.predictions.append(self.generated(self.canvas))
            return
        tokens, logp, ranking = decoder.filtered_scores(rows, self.conf_alg)
        if self.conf_alg == "random":
            ranking = torch.rand(self.canvas.shape, device=rows.device).flatten()[rows]
        prediction = self.canvas.clone()
        prediction.view(-1)[rows] = tokens
        self.predictions.append(self.generated(torch.where(masked, prediction, self.canvas)))
        if not rcr:
            confidence = torch.zeros_like(self.ranking)
            confidence.view(-1)[rows] = logp.exp()
            self.confidences.append(self.generated(confidence.to(decoder.logits_dtype)))
        candidates = masked.clone()
        candidates[:, end:] = False
        inside = candidates.flatten()[rows]
        if decoder.ties_are_common and not rcr and self.conf_alg != "random":
            values = ranking if self.conf_alg in _fused.MEASURES else ranking.exp()
            ranking = decoder.take_as_topk(rows, values.masked_fill(~inside, -torch.inf), counts)
        rows = torch.where(inside, rows, -1)
        decoder.commit(rows, tokens, ranking, counts, commit_confidence=self.ranking)
        self.filled |= masked & ~decoder.masked

    def remask(self, counts: list[int]) -> None:
        if self.surplus:
            # A position that was masked again and not refilled since still counts, with its old confidence.
            ranking = self.ranking.masked_fill(~self.filled, torch.inf)
            for row, wanted in enumerate(counts):
                lowest = ranking[row].topk(wanted, largest=False).indices
                self.canvas[row, lowest] = self.mask_id
                self.decoder.masked[row, lowest] = True
            return
        count = torch.tensor(counts, dtype=torch.int32, device=self.canvas.device)
        ops.remask_(self.canvas, self.decoder.masked, self.ranking, self.eligible, count, mask_id=self.mask_id)

    def latest_confidence(self) -> Tensor:
        as_it_is = self.conf_alg == "random" or self.conf_alg in _fused.MEASURES
        confidence = self.ranking if as_it_is else self.ranking.exp()
        return confidence.masked_fill(~self.filled, 0.0)
