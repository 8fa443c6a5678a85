"""Tensors of the rows being decoded, and what hooks and streamers see of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mdlm_fast.canvas import Canvas


@dataclass
class RowState:
    """State of n rows, first dimension n. `mutable` fields change as decoding goes; the others never do."""

    canvas: Tensor  # int64 [n, L]
    masked: Tensor  # bool [n, L]
    commit_step: Tensor | None  # int16 [n, L]
    commit_logp: Tensor | None  # float32 [n, L]
    commit_logp_T: Tensor | None  # float32 [n, L]
    commit_confidence: Tensor | None  # float32 [n, L]
    running: Tensor | None  # float32 [n, L], what RCR ranks by where it is not commit_confidence
    eligible: Tensor  # bool [n, L]
    block: Tensor  # int16 [n, L]
    real: Tensor  # bool [n, L]
    position: Tensor  # int32 [n, L]
    seeds: Tensor  # int64 [n]
    temperature: Tensor  # float32 [n]

    MUTABLE = ("canvas", "masked", "commit_step", "commit_logp", "commit_logp_T", "commit_confidence", "running")

    @classmethod
    def start(
        cls,
        canvas: Canvas,
        seeds: Tensor,
        temperature: Tensor,
        *,
        record: bool,
        logp: bool,
        confidence: bool,
        running: bool,
    ) -> RowState:
        """The state before the first step, with the buffers that this decode needs."""

        def buffer(wanted: bool, value: float, dtype: torch.dtype) -> Tensor | None:
            return torch.full(canvas.ids.shape, value, dtype=dtype, device=canvas.ids.device) if wanted else None

        return cls(
            canvas=canvas.ids.clone(),
            masked=canvas.eligible.clone(),
            commit_step=buffer(record, -1, torch.int16),
            commit_logp=buffer(record or logp, 0.0, torch.float32),
            commit_logp_T=buffer(record, 0.0, torch.float32),
            commit_confidence=buffer(record or confidence, -torch.inf, torch.float32),
            running=buffer(running, -torch.inf, torch.float32),
            eligible=canvas.eligible,
            block=canvas.block,
            real=canvas.real,
            position=canvas.position,
            seeds=seeds,
            temperature=temperature,
        )

    def take(self, rows: Tensor) -> RowState:
        """A copy of some rows."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        taken: dict[str, Any] = {name: None if value is None else value[rows] for name, value in values.items()}
        return RowState(**taken)

    def put(self, rows: Tensor, part: RowState) -> None:
        """Writes rows that `take` copied back."""
        for name in self.MUTABLE:
            values = getattr(self, name)
            if values is not None:
                values[rows] = getattr(part, name)

    def copy_rows(self, target: Tensor, source: Tensor) -> None:
        """Gives rows the mutable state of other rows (resampled particles)."""
        for name in self.MUTABLE:
            values = getattr(self, name)
            if values is not None:
                values[target] = values[source]


@dataclass(frozen=True)
class StepState:
    """What a hook or a streamer sees of the n rows in the batch. The tensors are the decoder's own: do not write to
    them.

    rows: for each, its number among all rows (prompt b, copy k of n: b * n + k). step: int32 [n], the row's own step.
    canvas: int64 [n, L]; masked: bool [n, L]; real: bool [n, L], False on pads. forwards: model calls so far.
    """

    rows: list[int]
    step: Tensor
    canvas: Tensor
    masked: Tensor
    real: Tensor
    forwards: int
