"""The rows decoded together at one time: their state, and the list of positions that the next step may choose."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mdlm_fast.pace import Pace
from mdlm_fast.row_state import RowState, StepState


class Batch:
    """n rows of the decode.

    state: their RowState. numbers: int64 [n] on the host, their numbers among all rows. generated: bool [n, L],
    positions of the generated part. padded: whether any row has pads. measured: a hook may change masks, so that
    candidates must be counted.
    """

    def __init__(
        self, state: RowState, numbers: np.ndarray, pace: Pace, generated: Tensor, *, padded: bool, measured: bool
    ) -> None:
        self.state = state
        self.numbers = numbers
        self.number_list: list[int] = numbers.tolist()
        self.pace = pace
        self.padded = padded
        self.measured = measured
        self.device = state.canvas.device
        self.generated = generated
        self.number = torch.from_numpy(numbers).to(self.device)
        self.length = state.canvas.shape[1]
        self.masks_left = torch.zeros(len(numbers), dtype=torch.int32, device=self.device)
        self.done = torch.zeros(len(numbers), dtype=torch.bool, device=self.device)
        self.next_rows: Tensor | None = None
        self.list_candidates()

    def list_candidates(self) -> None:
        """Lists the masked positions up to the active block's end, in canvas order: ``rows`` int32 [C], flat indices,
        -1 behind them up to the capacity."""
        self.active = self.to_device(self.pace.block[self.numbers].astype(np.int16))
        where = self.state.masked & (self.state.block <= self.active[:, None])
        if self.measured:
            self.pace.left[self.numbers] = where.sum(1).cpu().numpy()
        self._use(where.flatten().nonzero_static(size=self._capacity(), fill_value=-1).squeeze(1).to(torch.int32))

    def keep_uncommitted(self) -> None:
        """Takes over the rows that the last commit left; right while no row has changed its block."""
        assert self.next_rows is not None
        self._use(self.next_rows[: self._capacity()])

    def _use(self, rows: Tensor) -> None:
        self.rows = rows
        index = rows.clamp(min=0).long()
        self.sequence = (index // self.length).to(torch.int32)
        self.position = self.state.position.flatten()[index]

    def _capacity(self) -> int:
        """Rows of one call: exact on the CPU; elsewhere a power of two, so that few shapes occur."""
        count = int(self.pace.left[self.numbers].sum())
        return count if self.device.type == "cpu" or count == 0 else 1 << (count - 1).bit_length()

    def scope(self, name: str) -> tuple[Tensor, Tensor]:
        """The rows to score beyond the candidates, int32 [C], and whether each is a candidate, bool [C].

        "masked": all masked positions; "generated": the generated part too. Reads their number on the host.
        """
        where = self.state.masked if name == "masked" else self.state.masked | self.generated
        rows = where.flatten().nonzero().squeeze(1)
        candidate = self.state.masked & (self.state.block <= self.active[:, None])
        return rows.to(torch.int32), candidate.flatten()[rows]

    def to_device(self, values: np.ndarray) -> Tensor:
        """A host array as a tensor on the device."""
        return torch.from_numpy(values).to(self.device, non_blocking=True)

    def measured_left(self, blocks: np.ndarray) -> np.ndarray:
        """int64 [n], masks still among each row's candidates, read on the host. blocks: those just worked on."""
        if self.measured:
            where = self.state.masked & (self.state.block <= self.to_device(blocks.astype(np.int16))[:, None])
            return where.sum(1).cpu().numpy()
        return self.masks_left.cpu().numpy().astype(np.int64) - self.pace.later[self.numbers, blocks]

    def view(self, step: Tensor, forwards: int) -> StepState:
        """What hooks and streamers see."""
        state = self.state
        return StepState(self.number_list, step, state.canvas, state.masked, state.real, forwards)


class WholeBatch:
    """All n rows of a decode as one batch whose tensors keep their addresses, so that a CUDA graph may hold them.

    state: their RowState. padded: whether any row has pads. ended: bool [n], rows that stopped early: they have no
    candidates any more. active: int16 [n], the active block; to be set before `list_candidates`.
    """

    def __init__(self, state: RowState, *, padded: bool) -> None:
        rows, self.length = state.canvas.shape
        device = state.canvas.device
        self.state = state
        self.padded = padded
        self.number_list = list(range(rows))
        self.number = torch.arange(rows, device=device)
        self.masks_left = torch.zeros(rows, dtype=torch.int32, device=device)
        self.done = torch.zeros(rows, dtype=torch.bool, device=device)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.active = torch.zeros(rows, dtype=torch.int16, device=device)
        self.next_rows: Tensor | None = None

    def list_candidates(self, capacity: int) -> None:
        """Lists the masked positions up to the active block's end of rows that have not ended, as `Batch` does.
        ``busy``, bool [n]: rows that have any."""
        where = self.state.masked & (self.state.block <= self.active[:, None]) & ~self.ended[:, None]
        self.busy = where.any(1)
        rows = where.flatten().nonzero_static(size=capacity, fill_value=-1).squeeze(1)
        index = rows.clamp(min=0)
        self.rows = rows.to(torch.int32)
        self.sequence = torch.div(index, self.length, rounding_mode="floor").to(torch.int32)
        self.position = self.state.position.flatten()[index]

    def view(self, step: Tensor, forwards: int) -> StepState:
        """What the parts of a step see."""
        state = self.state
        return StepState(self.number_list, step, state.canvas, state.masked, state.real, forwards)
