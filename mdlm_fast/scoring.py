"""Scoring the rows of one step: guidance, hooks and forwards shared between equal canvases."""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mdlm_fast import ops
from mdlm_fast.bf16_race import raced_scores
from mdlm_fast.config import DecodeConfig
from mdlm_fast.ops import RowScores
from mdlm_fast.policies import needed_stats
from mdlm_fast.row_state import RowState, StepState

#: Logits of a shared forward are kept up to this many entries; beyond, rows go through the head once each.
_MOST_SHARED_LOGITS = 2**28


class Scorer(Protocol):
    """What the decoder needs of a model: `MaskedDiffusionModel`, or a drop-in's own.

    Both methods run the model once on ``input_ids`` int64 [n, L] (``attention_mask`` bool [n, L], or None when nothing
    is padded) and look at ``rows``, int32 [C], flat canvas indices b * L + l with -1 as padding. The scores or logits
    [C, V] are those that predict these positions, whatever shift the model has. With guidance, ``input_ids`` is [2n,
    L], the second half without its given tokens, and ``guidance_rows`` are rows of that half.
    """

    def score_rows(
        self, input_ids: Tensor, rows: Tensor, *, attention_mask: Tensor | None = None, **score_kwargs: Any
    ) -> RowScores: ...

    def row_logits(self, input_ids: Tensor, rows: Tensor, *, attention_mask: Tensor | None = None) -> Tensor: ...


class Scoring:
    """Scores rows of a batch as a configuration says, and counts forwards and the time they take."""

    def __init__(
        self,
        scorer: Scorer,
        config: DecodeConfig,
        *,
        mask_id: int,
        vocab_limit: int | None,
        device: torch.device,
        keep_logp: bool,
    ) -> None:
        self.scorer = scorer
        self.config = config
        self.mask_id = mask_id
        self.forwards = 0
        self.seconds = 0.0
        self.forbidden = tuple(sorted({mask_id, *config.forbid_ids}))
        self.options: dict[str, Any] = {
            "forbidden_ids": torch.tensor(self.forbidden, dtype=torch.int64, device=device),
            "vocab_limit": vocab_limit,
            "top_k": config.top_k,
            "top_p": config.top_p,
            "sample": config.samples,
            "normalize_over": config.normalize_over,
            "stats": needed_stats(config, keep_logp),
            "stats_from": config.confidence_from,
        }

    def scores(
        self,
        state: RowState,
        view: StepState,
        rows: Tensor,
        sequence: Tensor,
        position: Tensor,
        padded: bool,
        twins: np.ndarray | None,
    ) -> RowScores:
        """Scores of ``rows``, counted and timed. sequence, position: int32 [C], of each row. twins: rows of the batch
        with the same number hold the same canvas and are in the same block; None when none do."""
        begin = time.perf_counter()
        self.forwards += 1
        scores = self.score(state, view, rows, sequence, position, padded, twins)
        self.seconds += time.perf_counter() - begin
        return scores

    def score(
        self,
        state: RowState,
        view: StepState,
        rows: Tensor,
        sequence: Tensor,
        position: Tensor,
        padded: bool,
        twins: np.ndarray | None = None,
    ) -> RowScores:
        """The same, without counting."""
        options = {
            **self.options,
            "row_sequence": sequence,
            "row_position": position,
            "temperature": state.temperature,
            "seeds": state.seeds,
            "step": view.step,
        }
        if self.config.logits_hook is not None:
            return self._hooked(state, view, rows, padded, options)
        if self.config.sampler == "gumbel_bf16":
            logits = self.scorer.row_logits(state.canvas, rows, attention_mask=self._real(state.real, padded))
            return raced_scores(logits, _local(rows), options)
        if twins is not None:
            return self._shared(state, rows, sequence, padded, twins, options)
        return self._score(state.canvas, self._real(state.real, padded), state, rows, options)

    def _score(
        self, canvas: Tensor, real: Tensor | None, state: RowState, rows: Tensor, options: dict[str, Any]
    ) -> RowScores:
        if not self.config.cfg_scale:
            return self.scorer.score_rows(canvas, rows, attention_mask=real, **options)
        both, mask, guidance_rows = self._guided(canvas, real, state, rows)
        return self.scorer.score_rows(
            both,
            rows,
            attention_mask=mask,
            guidance_rows=guidance_rows,
            guidance_scale=self.config.cfg_scale,
            **options,
        )

    def _guided(
        self, canvas: Tensor, real: Tensor | None, state: RowState, rows: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Canvases with and without the tokens given at the start, their mask, and the rows of the second half."""
        given = state.real & ~state.eligible
        without = torch.where(given, self.mask_id, canvas)
        mask = None if real is None else real.repeat(2, 1)
        return torch.cat([canvas, without]), mask, torch.where(rows >= 0, rows + canvas.numel(), rows)

    def _hooked(
        self, state: RowState, view: StepState, rows: Tensor, padded: bool, options: dict[str, Any]
    ) -> RowScores:
        real = self._real(state.real, padded)
        if self.config.cfg_scale:
            both, mask, guidance_rows = self._guided(state.canvas, real, state, rows)
            logits = self.scorer.row_logits(both, torch.cat([rows, guidance_rows]), attention_mask=mask)
            with_prompt, without = logits.float().chunk(2)
            scale = self.config.cfg_scale
            guided = (scale + 1) * with_prompt - scale * without
            logits = torch.where(with_prompt == -torch.inf, with_prompt, guided)
        else:
            logits = self.scorer.row_logits(state.canvas, rows, attention_mask=real)
        changed = self.config.logits_hook(view, rows, logits)
        if not isinstance(changed, Tensor) or changed.shape != logits.shape:
            shape = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise ValueError(f"logits_hook returned {shape}; it must return logits of shape {tuple(logits.shape)}")
        return ops.score_rows(changed, _local(rows), **options)

    def _shared(
        self,
        state: RowState,
        rows: Tensor,
        sequence: Tensor,
        padded: bool,
        twins: np.ndarray,
        options: dict[str, Any],
    ) -> RowScores:
        """One forward for each distinct canvas; every row of the batch reads its twin's scores or logits."""
        _, first, number = np.unique(twins, return_index=True, return_inverse=True)
        device, length = rows.device, state.canvas.shape[1]
        first_row = torch.from_numpy(first).to(device)
        own = torch.from_numpy(number).to(device)[sequence.long()]
        shared_rows = torch.where(rows >= 0, own * length + rows % length, -1).to(torch.int32)
        part = state.take(first_row)
        canvas, mask = part.canvas, self._real(part.real, padded)
        distinct, index = torch.unique(shared_rows, return_inverse=True)
        index = torch.where(rows >= 0, index, -1).to(torch.int32)
        if not self.config.samples:
            options = dict(options)
            of_distinct = distinct.long().clamp(min=0)
            options["row_sequence"] = first_row[of_distinct // length].to(torch.int32)
            options["row_position"] = part.position.flatten()[of_distinct]
            scores = self._score(canvas, mask, part, distinct, options)
            of_twin: list[Any] = [None if value is None else value[index.long()] for value in scores]
            return RowScores(*of_twin)
        if self.config.cfg_scale:
            both, two, guidance_rows = self._guided(canvas, mask, part, distinct)
            logits = self.scorer.row_logits(both, torch.cat([distinct, guidance_rows]), attention_mask=two)
            guidance: dict[str, Any] = {
                "guidance_logits": logits,
                "guidance_rows": torch.where(index >= 0, index + distinct.shape[0], index),
                "guidance_scale": self.config.cfg_scale,
            }
            return ops.score_rows(logits, index, **guidance, **options)
        vocabulary = getattr(self.scorer, "vocab_size", None) or 0
        if distinct.shape[0] * vocabulary > _MOST_SHARED_LOGITS:
            return self._score(canvas, mask, part, shared_rows, options)
        return ops.score_rows(self.scorer.row_logits(canvas, distinct, attention_mask=mask), index, **options)

    @staticmethod
    def _real(real: Tensor, padded: bool) -> Tensor | None:
        return real if padded else None


def _local(rows: Tensor) -> Tensor:
    """Their own numbers, int32 [C], where rows are no padding: rows of logits that were gathered for them."""
    local = torch.arange(rows.shape[0], dtype=torch.int32, device=rows.device)
    return torch.where(rows >= 0, local, rows)
