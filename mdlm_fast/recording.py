"""Step-by-step records: what every step wrote (needed once tokens may be masked again), and what it predicted."""

from __future__ import annotations

import torch
from torch import Tensor

from mdlm_fast.row_state import RowState
from mdlm_fast.trajectory import Events, Predictions, pack_bits


class StepRecorder:
    """Dense buffers over the window of positions that decoding may write, [B, S, W], sized in advance.

    eligible: bool [B, L]. steps: the most steps a row can make. events, predictions: what to record.
    """

    def __init__(self, eligible: Tensor, steps: int, *, events: bool, predictions: bool) -> None:
        rows, length = eligible.shape
        device = eligible.device
        count = torch.arange(length, device=device)
        any_eligible = eligible.any(1)
        self.start = (
            torch.where(any_eligible, torch.where(eligible, count, length).amin(1), 0) if length else eligible.sum(1)
        )
        end = torch.where(eligible, count + 1, 0).amax(1) if length else self.start
        width = int((end - self.start).clamp(min=0).max()) if rows else 0
        self.columns = (self.start[:, None] + torch.arange(width, device=device)).clamp(max=max(length - 1, 0))
        shape = (rows, steps, width)

        def buffer(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        self.events = events
        self.predictions = predictions
        self.token = buffer(-1, torch.int32) if events else None
        self.logp = buffer(0.0, torch.float32) if events else None
        self.masked = buffer(False, torch.bool) if events else None
        self.predicted = buffer(-1, torch.int32) if predictions else None
        self.confidence = buffer(torch.nan, torch.float32) if predictions else None

    def reserve(self, steps: int) -> None:
        """Makes room for ``steps`` steps: a token hook that masks tokens again may need more than were foreseen."""
        for name in ("token", "logp", "masked", "predicted", "confidence"):
            buffer = getattr(self, name)
            if buffer is not None and buffer.shape[1] < steps:
                value = torch.nan if name == "confidence" else -1 if name in ("token", "predicted") else 0
                more = torch.full_like(buffer[:, :1], value).expand(-1, max(steps, buffer.shape[1]), -1)
                setattr(self, name, torch.cat([buffer, more], 1))

    def before(self, rows: Tensor, step: Tensor, masked: Tensor) -> None:
        """Records which positions are masked when the step begins. rows: int64 [n], numbers of the batch's rows.
        masked: bool [n, L]."""
        if self.masked is not None:
            self.masked[rows, step] = masked.gather(1, self.columns[rows])

    def scored(
        self,
        rows: Tensor,
        step: Tensor,
        scored: Tensor,
        sequence: Tensor,
        token: Tensor,
        confidence: Tensor,
        length: int,
    ) -> None:
        """Records the predictions of a step. scored: int32 [C] flat canvas indices, -1 padding; sequence: int32 [C]."""
        if self.predicted is None or self.confidence is None:
            return
        real = torch.nonzero(scored >= 0).squeeze(1)
        of = sequence[real].long()
        number, at = rows[of], step.long()[of]
        column = scored[real].long() % length - self.start[number]
        inside = (column >= 0) & (column < self.predicted.shape[2])
        number, at, column, real = number[inside], at[inside], column[inside], real[inside]
        self.predicted[number, at, column] = token[real].to(torch.int32)
        self.confidence[number, at, column] = confidence[real]

    def wrote(self, rows: Tensor, step: Tensor, state: RowState) -> None:
        """Records what the step committed; to be called before anything is masked again, and after a hook wrote."""
        if self.token is None or self.logp is None:
            return
        assert state.commit_step is not None and state.commit_logp is not None
        columns = self.columns[rows]
        new = state.commit_step.gather(1, columns) == step[:, None]
        at = step.long()
        self.token[rows, at] = torch.where(new, state.canvas.gather(1, columns).to(torch.int32), self.token[rows, at])
        self.logp[rows, at] = torch.where(new, state.commit_logp.gather(1, columns), self.logp[rows, at])

    def copy_rows(self, target: Tensor, source: Tensor) -> None:
        """Gives rows the record of other rows (resampled particles)."""
        for buffer in (self.token, self.logp, self.masked, self.predicted, self.confidence):
            if buffer is not None:
                buffer[target] = buffer[source]

    def result(self, steps: int, rows: Tensor) -> tuple[Events | None, Predictions | None]:
        """The records of some rows, cut to the steps made."""
        events = predictions = None
        start = self.start[rows]
        if self.token is not None and self.logp is not None and self.masked is not None:
            bits = pack_bits(self.masked[rows, :steps])
            events = Events(start, self.token[rows, :steps], self.logp[rows, :steps], bits)
        if self.predicted is not None and self.confidence is not None:
            # Its own tensor: safetensors refuses two entries that share memory.
            predictions = Predictions(start.clone(), self.predicted[rows, :steps], self.confidence[rows, :steps])
        return events, predictions
