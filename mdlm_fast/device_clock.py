"""`Pace` as tables on the device: what a step needs to know is looked up there, so a captured step can be replayed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mdlm_fast.batch import WholeBatch
from mdlm_fast.config import DecodeConfig
from mdlm_fast.pace import Pace


class DeviceClock:
    """All n rows make step ``step`` (int32 [1]) together; a row for which it reveals nothing commits nothing.

    pace: its plan is read once. threshold: the rule's parameter, or None.
    """

    def __init__(self, pace: Pace, config: DecodeConfig, threshold: float | None, device: torch.device) -> None:
        def table(values: np.ndarray | None, dtype: type) -> Tensor | None:
            return None if values is None else torch.from_numpy(np.ascontiguousarray(values, dtype=dtype)).to(device)

        rows = len(pace.counts)
        self.fixed = pace.fixed
        self.remasks = config.remasking is not None
        self.block_index = pace.eoser_block_index
        self.last_block = pace.num_blocks - 1
        self.step = torch.zeros(1, dtype=torch.int32, device=device)
        self.previous_block = torch.full((rows,), -1, dtype=torch.int64, device=device)
        self.steps_in_block = torch.zeros(rows, dtype=torch.int64, device=device)
        self.first = table(pace.first, np.int64)  # [blocks + 1], first step of each block
        self.block_of_step = table(pace.block_of_step, np.int16)  # [S + 1]
        self.plan = table(pace.plan, np.int32)  # [n, S], what each step reveals
        self.entering = table(pace.entering, np.int32) if pace.planned else None  # [n, S + 1], masks entering each step
        self.factors = table(pace.factors, np.float32)  # [S], EOSER
        self.transfer = table(pace.origin, np.float32)  # [S], Dream's origin rule
        self.threshold = None
        if threshold is not None:
            self.threshold = torch.full((rows,), threshold, dtype=torch.float32, device=device)

    def begin(self, batch: WholeBatch) -> None:
        """Sets the batch's active blocks and counts the steps made in them."""
        if self.fixed:
            assert self.block_of_step is not None and self.first is not None
            block = self.block_of_step[self.step].expand_as(batch.active)
            self.index = self.step.long().expand(block.shape[0])
            self.in_block = self.index - self.first[block.long()]
        else:  # a row works on its first block that holds a mask
            state = batch.state
            block = torch.where(state.masked, state.block, state.block.new_full((), self.last_block)).amin(1)
            now = block.long()
            self.steps_in_block.copy_(torch.where(now == self.previous_block, self.steps_in_block + 1, 0))
            self.previous_block.copy_(now)
            self.in_block = self.steps_in_block
            assert self.first is not None
            self.index = torch.minimum(self.first[now] + self.in_block, self.first[now + 1] - 1)
        batch.active.copy_(block)

    def quota(self) -> Tensor | None:
        """int32 [n], how many tokens this step reveals (with remasking: fills), for rules that ask."""
        return self._at(self.entering if self.remasks else self.plan)

    def left_after(self) -> Tensor:
        """int32 [n], masks that the schedule leaves among the candidates after this step."""
        filled, revealed = self._at(self.entering), self._at(self.plan)
        assert filled is not None and revealed is not None
        return filled - revealed

    def reveals(self) -> Tensor | None:
        """bool [n], whether the schedule reveals anything at this step; None without a schedule."""
        revealed = self._at(self.plan)
        return None if revealed is None else revealed > 0

    def gamma(self) -> Tensor | None:
        """float32 [n], EOSER's factor at this step."""
        if self.factors is None:
            return None
        index = self.in_block if self.block_index else self.step.long().expand_as(self.in_block)
        return self.factors[index.clamp(max=self.factors.shape[0] - 1)]

    def bound(self) -> Tensor | None:
        """float32 [n], the selection rule's threshold or probability at this step."""
        if self.transfer is not None:
            return self.transfer[self.index]
        return self.threshold

    def _at(self, table: Tensor | None) -> Tensor | None:
        return None if table is None else table.gather(1, self.index[:, None]).squeeze(1)
