"""Decoding with CUDA graphs: a whole step, model and all, is captured once and replayed with new numbers.

Nothing in a step depends on the host: the schedule lies in tables on the device (`DeviceClock`), the rows to score are
listed on the device up to a power-of-two capacity, and rows that are finished have no candidates and stay as they are.
There is one graph for each capacity. A capacity's first step runs as it is, which also warms everything up; its second
is captured. With a fixed schedule the host only counts steps; else it looks at the number of unfinished rows one step
late, while the next step runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from mdlm_fast.batch import WholeBatch
from mdlm_fast.config_checks import MOST_STEPS
from mdlm_fast.device_clock import DeviceClock
from mdlm_fast.engine import Decoder
from mdlm_fast.policies import confidence_of
from mdlm_fast.remasking import note_fills, remask
from mdlm_fast.stopping import ended_at_eos


class CapturedDecoder(Decoder):
    """Decodes all rows together, step by step, on CUDA by replaying graphs. On another device the same steps run
    uncaptured. The result is `Decoder`'s, up to the rounding of the model's matrix products at other batch shapes."""

    @torch.no_grad()
    def run(self) -> None:
        """Decodes every row. Raises: see `Decoder.run`."""
        device = self.canvas.ids.device
        rows = len(self.row_steps)
        self.batch = WholeBatch(self.rows, padded=bool(self.padded.any()))
        self.clock = DeviceClock(self.pace, self.config, self.threshold, device)
        self.steps_made = torch.zeros(rows, dtype=torch.int64, device=device)
        self.forwards_made = torch.zeros(rows, dtype=torch.int64, device=device)
        graphs = StepGraphs(self._whole_step, device)
        unfinished = Unfinished(self.batch)
        for step, capacity in self._steps():
            self.clock.step.fill_(step)
            graphs.run(capacity)
            self.scoring.forwards += 1
            if (self.stop_ids is not None or not self.pace.fixed) and unfinished.none_left(self.scoring.forwards):
                break
        self.bad_rows.check()
        self.row_steps = self.steps_made.cpu().numpy()
        self.row_forwards = self.forwards_made.cpu().numpy()

    def _steps(self) -> Iterable[tuple[int, int]]:
        """(step, capacity of its list of rows) of every step to make; without end where the scores decide."""
        counts = self.pace.counts
        if not counts.any():
            return []
        if not self.pace.fixed:  # a block of every row at the most
            capacity = _bucket(int(counts.max(1).sum()))
            return ((step, capacity) for step in range(MOST_STEPS + 1))
        if self.pace.planned:
            every = self.config.remasking is not None
            entering, plan = self.pace.entering.sum(0), self.pace.plan
            assert plan is not None
            busy = plan.sum(0) if not every else np.ones(self.pace.total)
            return [(s, _bucket(int(entering[s]))) for s in range(self.pace.total) if busy[s] and entering[s]]
        blocks = self.pace.block_of_step[: self.pace.total]
        return [(s, _bucket(int(counts[:, block].sum()))) for s, block in enumerate(blocks) if counts[:, block].any()]

    def _whole_step(self, capacity: int) -> None:
        """One step of every row, written with device tensors alone."""
        config, clock, batch = self.config, self.clock, self.batch
        state, step = batch.state, clock.step
        every = step.expand(len(batch.number_list))
        clock.begin(batch)
        batch.list_candidates(capacity)
        reveals = clock.reveals()
        busy = batch.busy if reveals is None or config.remasking or not clock.fixed else batch.busy & reveals
        self.forwards_made += busy
        self.steps_made.copy_(torch.where(busy, step.long() + 1, self.steps_made))
        if self.recorder is not None:
            self.recorder.before(batch.number, every.long(), state.masked & ~batch.ended[:, None])
        was_masked = None if state.running is None else state.masked.clone()
        scores = self.scoring.score(
            state, batch.view(step, 0), batch.rows, batch.sequence, batch.position, batch.padded
        )
        self.bad_rows.note(scores.token, batch.sequence.long())
        confidence = confidence_of(config, scores, state.seeds, batch.sequence, batch.position, step)
        gamma = clock.gamma()
        self._commit(
            batch,
            step,
            batch.rows,
            batch.position,
            scores.token,
            confidence,
            scores,
            clock.quota(),
            clock.bound(),
            gamma,
        )
        if config.remasking is not None and was_masked is not None:
            factor = None if gamma is None else gamma[:, None]
            note_fills(config.remasking, state, was_masked, self.eoser_ids, factor, self.discount)
        if self.recorder is not None:
            self.recorder.wrote(batch.number, every, state)
        if config.remasking is not None:
            remask(config.remasking, batch, torch.where(batch.ended, 0, clock.left_after()), self.canvas.mask_id)
        if self.stop_ids is not None:
            ended, first = ended_at_eos(state, self.stop_ids)
            self.last.copy_(torch.where(ended & ~batch.ended, first, self.last))
            batch.ended |= ended


class StepGraphs:
    """A step as one CUDA graph for each capacity, or run as it is where there is no CUDA."""

    def __init__(self, step: Callable[[int], None], device: torch.device) -> None:
        self._step = step
        self._captures = device.type == "cuda"
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._warm: set[int] = set()
        if self._captures:
            self._stream = torch.cuda.Stream(device)
            self._pool: Any = torch.cuda.graph_pool_handle()  # graphs never run at the same time, so they share memory

    def run(self, capacity: int) -> None:
        """Makes a step with this capacity."""
        if not self._captures or capacity not in self._warm:
            self._warm.add(capacity)
            self._step(capacity)
            return
        graph = self._graphs.get(capacity)
        if graph is None:
            graph = self._graphs[capacity] = torch.cuda.CUDAGraph()
            self._capture(graph, capacity)
        graph.replay()

    def _capture(self, graph: torch.cuda.CUDAGraph, capacity: int) -> None:
        """Records a step. Unlike `torch.cuda.graph` it neither waits for the device nor empties the allocator's cache,
        which would cost more than a few replays save."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                self._step(capacity)
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)


class Unfinished:
    """How many rows still have something to decode, read one step late so that the device never waits for the host."""

    def __init__(self, batch: WholeBatch) -> None:
        self._batch = batch
        self._on_cuda = batch.done.is_cuda
        self._counts = [torch.ones(1, dtype=torch.int64, pin_memory=self._on_cuda) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)] if self._on_cuda else []

    def none_left(self, step: int) -> bool:
        """Whether every row was finished after the step before this one, the ``step``-th (on a CPU: after this)."""
        unfinished = (~(self._batch.done | self._batch.ended)).sum(0, keepdim=True)
        now, before = step % 2, (step + 1) % 2
        self._counts[now].copy_(unfinished, non_blocking=True)
        if not self._on_cuda:
            return int(self._counts[now]) == 0
        self._copied[now].record()
        self._copied[before].synchronize()
        return int(self._counts[before]) == 0


def _bucket(count: int) -> int:
    """The power of two that holds `count` rows. Not below 256, where the head's time is still about that of reading its
    weight, and a graph for each smaller number would cost more than it saves."""
    return max(256, 1 << max(count - 1, 0).bit_length())
