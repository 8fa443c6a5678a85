"""Which step and block every row is at, kept on the host so that no step waits for the device.

With rules that follow a schedule everything is known when decoding starts: the quotas, the number of masks at each step
and the steps that reveal nothing. Rules that decide from the scores are told what is left after each step.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mdlm_fast.config import DecodeConfig
from mdlm_fast.config_checks import MOST_STEPS
from mdlm_fast.policies import eoser_factors
from mdlm_fast.schedules import dream_transfer_probabilities, quota_plan

Array = np.ndarray


class Pace:
    """The clock of B rows. All arrays are int64 [B]: ``step`` is the row's own step, ``block`` its active block (the
    number of blocks once it is finished), ``left`` the masks among its candidates.

    counts: int64 [B, blocks], masks in each block when decoding starts. every_step: make every step of the schedule,
    also those that reveal nothing. measured: the caller may change masks, so ``left`` must be reported even if planned.
    """

    def __init__(
        self, config: DecodeConfig, counts: Tensor, *, every_step: bool = False, measured: bool = False
    ) -> None:
        steps = [block_steps for _, block_steps in config.blocks()]
        self.counts = counts.cpu().numpy()
        rows = self.counts.shape[0]
        self.num_blocks = len(steps)
        self.fixed = config.fixed_steps
        self.planned = config.select == "quota" and not measured
        self.takes_rest = measured and config.select == "quota"
        self.total = sum(steps)
        self.first = np.cumsum([0, *steps])
        self.block_of_step = np.append(np.repeat(np.arange(self.num_blocks), steps), self.num_blocks)
        self.later = self.counts.sum(1, keepdims=True) - self.counts.cumsum(1)
        self.plan: Array | None = None
        if config.select in ("quota", "quota_threshold"):
            self.plan = quota_plan(config.schedule, torch.from_numpy(self.counts), steps).numpy()
        if self.planned:
            self._read_plan(steps, every_step)
        self.eoser_block_index = (
            config.eoser is not None and config.eoser.eos_index == "block" and config.schedule != "ass"
        )
        self.factors = np.array(eoser_factors(config, config.total_steps), dtype=np.float32) if config.eoser else None
        self.origin: Array | None = None
        if config.select == "origin":
            self.origin = np.concatenate([dream_transfer_probabilities(n).numpy() for n in steps])
        self.step = np.zeros(rows, dtype=np.int64)
        self.in_block = np.zeros(rows, dtype=np.int64)
        self.block = np.zeros(rows, dtype=np.int64)
        self.left = np.zeros(rows, dtype=np.int64)
        self._enter(np.arange(rows))

    def _read_plan(self, steps: list[int], every_step: bool) -> None:
        """Masks entering each step, and the next step at which a row has something to do."""
        assert self.plan is not None
        rows = self.plan.shape[0]
        self.entering = np.zeros((rows, self.total + 1), dtype=np.int64)
        self.next_busy = np.full((rows, self.total + 1), self.total, dtype=np.int64)
        for block, block_steps in enumerate(steps):
            first = int(self.first[block])
            part = self.plan[:, first : first + block_steps]
            self.entering[:, first : first + block_steps] = part[:, ::-1].cumsum(1)[:, ::-1]
        for step in range(self.total - 1, -1, -1):
            busy = np.full(rows, True) if every_step else self.plan[:, step] > 0
            self.next_busy[:, step] = np.where(busy, step, self.next_busy[:, step + 1])

    def _enter(self, rows: Array) -> None:
        """Puts rows at step 0 of their first block that has a mask; rows without any mask are finished."""
        if self.planned:
            self._jump(rows, self.next_busy[rows, 0])
        else:
            self._next_block(rows, np.zeros(len(rows), dtype=np.int64))
        empty = rows[self.counts[rows].sum(1) == 0]
        self.block[empty] = self.num_blocks

    def _jump(self, rows: Array, steps: Array) -> None:
        self.step[rows] = steps
        self.block[rows] = self.block_of_step[steps]
        self.in_block[rows] = steps - self.first[self.block[rows]]
        self.left[rows] = self.entering[rows, steps]

    def _next_block(self, rows: Array, blocks: Array) -> None:
        """Rows begin the first block at or after ``blocks`` that has a mask, or are finished."""
        for row, block in zip(rows, blocks, strict=True):
            while block < self.num_blocks and self.counts[row, block] == 0:
                block += 1
            self.block[row] = block
            self.in_block[row] = 0
            self.left[row] = self.counts[row, block] if block < self.num_blocks else 0
            if self.fixed:
                self.step[row] = self.first[block]

    def advance(self, rows: Array, left: Array | None = None) -> None:
        """Moves rows past the step they just made. left: masks still among each row's candidates, unless planned."""
        if self.planned:
            step = self.step[rows] + 1
            self._jump(rows, self.next_busy[rows, step])
            return
        assert left is not None
        self.step[rows] += 1
        if int(self.step[rows].max()) > MOST_STEPS:
            raise ValueError(
                f"a row needs more than {MOST_STEPS} steps: token_hook masks tokens as fast as they are committed"
            )
        self.in_block[rows] += 1
        self.left[rows] = left
        over = left == 0
        if self.takes_rest:
            over = np.zeros_like(over)
        if self.fixed:
            over = over | (self.step[rows] >= self.first[self.block[rows] + 1])
        if over.any():
            done = rows[over]
            self._next_block(done, self.block[done] + 1)

    def finished(self, rows: Array) -> Array:
        """bool, rows that have passed their last block."""
        return self.block[rows] >= self.num_blocks

    def quota(self, rows: Array) -> Array | None:
        """int32, what the schedule reveals at this step, for rules that ask."""
        if self.plan is None:
            return None
        index = np.minimum(self.first[self.block[rows]] + self.in_block[rows], self.first[self.block[rows] + 1] - 1)
        quota = self.plan[rows, index]
        if self.takes_rest:
            quota = np.where(self.step[rows] + 1 == self.first[self.block[rows] + 1], self.left[rows], quota)
        return quota.astype(np.int32)

    def left_after(self, rows: Array) -> Array:
        """int32, masks that the schedule leaves among the candidates after this step."""
        quota = self.quota(rows)
        assert quota is not None
        return np.maximum(self.left[rows] - quota, 0).astype(np.int32)

    def gamma(self, rows: Array) -> Array | None:
        """float32, EOSER's factor at this step."""
        if self.factors is None:
            return None
        index = self.in_block[rows] if self.eoser_block_index else self.step[rows]
        return self.factors[np.minimum(index, len(self.factors) - 1)]

    def transfer_probability(self, rows: Array) -> Array:
        """float32, Dream's origin rule."""
        return self.origin[self.step[rows]]  # type: ignore[index]

    def copy_rows(self, target: Array, source: Array) -> None:
        """Gives rows the clock of other rows (resampled particles)."""
        for name in ("step", "in_block", "block", "left"):
            values = getattr(self, name)
            values[target] = values[source]
