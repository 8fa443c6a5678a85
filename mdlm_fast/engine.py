"""The decode loop: rows of many prompts, each at its own step, in one batch.

One step runs the model on the rows that may be chosen, ranks them and commits; the commit returns the rows that the
next step scores. What the host must know (steps, blocks, counts) is computed ahead by `Pace`, so with rules that
follow a schedule no step waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdlm_fast import ops
from mdlm_fast.bad_rows import BadRows
from mdlm_fast.batch import Batch, WholeBatch
from mdlm_fast.canvas import Canvas
from mdlm_fast.config import DecodeConfig
from mdlm_fast.hooks import apply_token_hook
from mdlm_fast.ops import RowScores
from mdlm_fast.pace import Pace
from mdlm_fast.policies import confidence_of, discount_kind, threshold_value
from mdlm_fast.recording import StepRecorder
from mdlm_fast.remasking import note_fills, remask
from mdlm_fast.row_state import RowState, StepState
from mdlm_fast.scoring import Scorer, Scoring
from mdlm_fast.smc import ParticleGroups
from mdlm_fast.stopping import StopStrings, ended_at_eos

WAITING, ACTIVE, PARKED, DONE = range(4)


class Decoder:
    """Decodes all N rows of a canvas. `run` does it; `rows`, `last`, `recorder` and the counters then hold the result.

    scorer: see Scorer. The particles of a row (config.smc) are neighbours. seeds: int64 [N]. temperature: float32 [N].
    twins: int64 [N], rows with the same number start from the same canvas. on_step: called with a StepState after every
    step, or None.

    After `run`: last int64 [N], the position of the last token of a row that stopped early, else L. row_steps,
    row_forwards: int64 [N] on the host.
    """

    def __init__(
        self,
        scorer: Scorer,
        canvas: Canvas,
        config: DecodeConfig,
        *,
        seeds: Tensor,
        temperature: Tensor,
        twins: np.ndarray,
        eos_ids: tuple[int, ...],
        vocab_limit: int | None,
        tokenizer: Any = None,
        on_step: Callable[[StepState], None] | None = None,
    ) -> None:
        self.config = config
        self.canvas = canvas
        device = canvas.ids.device
        total, length = canvas.ids.shape
        self.on_step = on_step
        self.particles = config.smc.particles if config.smc else 1
        record = config.record != "none"
        rcr, hook = config.remasking, config.token_hook is not None
        counts = canvas.counts(len(config.blocks()))
        self.pace = Pace(
            config,
            counts,
            every_step=bool(rcr or hook or config.logits_hook or config.record == "full"),
            measured=hook,
        )
        self.discount = discount_kind(config)
        running = rcr is not None and (rcr.running == "max" or self.discount != "none")
        weigh = self.particles > 1
        self.rows = RowState.start(
            canvas, seeds, temperature, record=record, logp=weigh, confidence=rcr is not None, running=running
        )
        self.scoring = Scoring(
            scorer, config, mask_id=canvas.mask_id, vocab_limit=vocab_limit, device=device, keep_logp=record or weigh
        )
        self.recorder: StepRecorder | None = None
        events = record and (rcr is not None or hook)
        if events or config.record == "full":
            steps = self.pace.total if config.fixed_steps else int(counts.sum(1).max()) if counts.numel() else 0
            self.recorder = StepRecorder(canvas.eligible, steps, events=events, predictions=config.record == "full")
        self.groups = ParticleGroups(config.smc, total) if config.smc and weigh else None
        eoser_ids = (config.eoser.eos_ids if config.eoser else None) or eos_ids
        self.eoser_ids = torch.tensor(eoser_ids, dtype=torch.int64, device=device)
        self.stop_ids = torch.tensor(eos_ids, dtype=torch.int64, device=device) if config.stop_at_eos else None
        self.stop_strings: StopStrings | None = None
        if config.stop_strings:
            self.stop_strings = StopStrings(tokenizer, config.stop_strings, canvas.start, canvas.generated)
        at = torch.arange(length, device=device)
        self.generated = (at >= canvas.start[:, None]) & (at < canvas.start[:, None] + canvas.generated)
        self.threshold = threshold_value(config)
        self.padded = (~canvas.real).any(1).cpu().numpy()
        self.twins = np.array(twins, dtype=np.int64)
        self.fresh = np.full(total, True)
        self.status = np.full(total, WAITING)
        self.last = torch.full((total,), length, dtype=torch.int64, device=device)
        self.row_steps = np.zeros(total, dtype=np.int64)
        self.row_forwards = np.zeros(total, dtype=np.int64)
        self.bad_rows = BadRows(total, None if device.type == "cpu" else device)

    @torch.no_grad()
    def run(self) -> None:
        """Decodes every row.

        Raises:
            ValueError: a row of logits could not be scored. On the CPU at once, elsewhere where the device is read.
        """
        self.status[self.pace.finished(np.arange(len(self.status)))] = DONE
        batch = self._form_batch()
        while batch is not None:
            blocks = self._step(batch)
            batch = self._after_step(batch, blocks)
        self.bad_rows.check()

    # -- who is in the batch --------------------------------------------------------------------------------------

    def _form_batch(self) -> Batch | None:
        """The rows still active, then waiting ones in free places; None when every row is done."""
        room = (self.config.max_batch or len(self.status)) - int(np.isin(self.status, (ACTIVE, PARKED)).sum())
        waiting = np.flatnonzero(self.status == WAITING)
        self.status[waiting[: room // self.particles * self.particles]] = ACTIVE
        numbers = np.flatnonzero(self.status == ACTIVE)
        if not numbers.size:
            return None
        where = torch.from_numpy(numbers).to(self.rows.canvas.device)
        everyone = numbers.size == len(self.status)
        state = self.rows if everyone else self.rows.take(where)
        generated = self.generated if everyone else self.generated[where]
        padded, measured = bool(self.padded[numbers].any()), self.config.token_hook is not None
        return Batch(state, numbers, self.pace, generated, padded=padded, measured=measured)

    def _after_step(self, batch: Batch, blocks: np.ndarray) -> Batch | None:
        """Retires rows that are finished; returns the next step's batch. blocks: int64 [n], those just worked on."""
        finished = self.pace.finished(batch.numbers)
        self._stop_rows(batch, finished)
        moved = self.pace.block[batch.numbers] != blocks
        self.status[batch.numbers[finished]] = DONE
        if self.groups is not None:
            self.status[batch.numbers[moved & ~finished]] = PARKED
        if finished.any() or (self.groups is not None and moved.any()):
            if batch.state is not self.rows:
                self.rows.put(batch.number, batch.state)
            if self.groups is not None:
                self._resample(self.groups)
            return self._form_batch()
        if moved.any() or self.config.remasking or self.config.token_hook or batch.next_rows is None:
            batch.list_candidates()
        else:
            batch.keep_uncommitted()
        return batch

    def _stop_rows(self, batch: Batch, finished: np.ndarray) -> None:
        """Marks rows that ended at an end token or a stop string in ``finished``, bool [n]."""
        if self.stop_ids is not None:
            ended, first = ended_at_eos(batch.state, self.stop_ids)
            self.last[batch.number] = torch.where(ended, first, self.last[batch.number])
            finished |= ended.cpu().numpy()
        if self.stop_strings is not None:
            for index, last in self.stop_strings.ended(batch.state, batch.number_list):
                number = batch.number_list[index]
                self.last[number] = self.last[number].clamp(max=last)
                finished[index] = True

    def _resample(self, groups: ParticleGroups) -> None:
        """Resamples the particles of every row whose particles have all reached the end of a block."""
        for first in range(0, len(self.status), self.particles):
            members = np.arange(first, first + self.particles)
            parked = members[self.status[members] == PARKED]
            if not parked.size or not np.isin(self.status[members], (PARKED, DONE)).all():
                continue
            self.status[parked] = ACTIVE
            source = groups.resample(self.rows, members, int(self.pace.block[parked].max()))
            if source is None:
                continue
            target, origin = torch.from_numpy(members), torch.from_numpy(source)
            target, origin = target.to(self.last.device), origin.to(self.last.device)
            self.rows.copy_rows(target, origin)
            if self.recorder is not None:
                self.recorder.copy_rows(target, origin)
            if self.stop_strings is not None:
                self.stop_strings.forget(members.tolist())
            self.last[target] = self.last[origin]
            self.pace.copy_rows(members, source)
            self.status[members], self.row_steps[members] = self.status[source], self.row_steps[source]
            self.twins[members] = len(self.status) + source
            self.fresh[members] = True

    # -- one step -------------------------------------------------------------------------------------------------

    def _step(self, batch: Batch) -> np.ndarray:
        """Makes one step of every row of the batch; returns the blocks they worked on."""
        pace, numbers = self.pace, batch.numbers
        step = batch.to_device(pace.step[numbers].astype(np.int32))
        if self.recorder is not None:
            self.recorder.reserve(int(pace.step[numbers].max()) + 1)
            self.recorder.before(batch.number, step.long(), batch.state.masked)
        was_masked = None if batch.state.running is None else batch.state.masked.clone()
        if batch.rows.numel():
            self._score_and_commit(batch, step)
        if self.config.remasking is not None and was_masked is not None:
            gamma = self.pace.gamma(numbers)
            factor = None if gamma is None else batch.to_device(gamma)[:, None]
            note_fills(self.config.remasking, batch.state, was_masked, self.eoser_ids, factor, self.discount)
        if self.recorder is not None:
            self.recorder.wrote(batch.number, step, batch.state)
        if self.config.remasking is not None and (count := pace.left_after(numbers)).any():
            remask(self.config.remasking, batch, batch.to_device(count), self.canvas.mask_id)
        if self.config.token_hook is not None:
            scoring = self.scoring
            vocabulary = getattr(scoring.scorer, "vocab_size", None)
            apply_token_hook(self.config.token_hook, batch, step, scoring.forwards, self.canvas.mask_id, vocabulary)
            if self.recorder is not None:
                self.recorder.wrote(batch.number, step, batch.state)
        self.row_steps[numbers] = pace.step[numbers] + 1
        blocks = pace.block[numbers]
        left = None
        if not pace.planned:  # the host waits for the device here, so a row that can never finish is found too
            left = batch.measured_left(blocks)
            self.bad_rows.check()
        pace.advance(numbers, left)
        if self.on_step is not None:
            self.on_step(batch.view(step, self.scoring.forwards))
        return blocks

    def _twins(self, numbers: np.ndarray) -> np.ndarray | None:
        """Which rows of the batch hold the same canvas; None when no two do."""
        fresh = self.fresh[numbers]
        if not fresh.any():
            return None
        self.fresh[numbers] = False
        twins = np.where(fresh, self.twins[numbers], -1 - np.arange(len(numbers)))
        return twins if len(np.unique(twins)) < len(numbers) else None

    def _score_and_commit(self, batch: Batch, step: Tensor) -> None:
        config, state, numbers = self.config, batch.state, batch.numbers
        rows, sequence, position, candidate = batch.rows, batch.sequence, batch.position, None
        if config.score_scope != "block":
            rows, candidate = batch.scope(config.score_scope)
            sequence = torch.div(rows, batch.length, rounding_mode="floor")
            position = state.position.flatten()[rows.long()]
        view = batch.view(step, self.scoring.forwards)
        scores = self.scoring.scores(state, view, rows, sequence, position, batch.padded, self._twins(numbers))
        self.row_forwards[numbers] += 1
        self.bad_rows.note(scores.token, batch.number[sequence.long()])
        confidence = confidence_of(config, scores, state.seeds, sequence, position, step)
        if self.recorder is not None:
            self.recorder.scored(batch.number, step, rows, sequence, scores.token, confidence, batch.length)
        token = scores.token if candidate is None else torch.where(candidate, scores.token, -1)
        gamma, quota, threshold = self.pace.gamma(numbers), self.pace.quota(numbers), None
        if config.remasking is not None:
            quota = self.pace.left[numbers].astype(np.int32)
        if self.threshold is not None:
            threshold = np.full(len(numbers), self.threshold, dtype=np.float32)
        elif config.select == "origin":
            threshold = self.pace.transfer_probability(numbers)
        batch.next_rows = torch.empty_like(rows) if candidate is None else None
        on_device = [None if values is None else batch.to_device(values) for values in (quota, threshold, gamma)]
        self._commit(batch, step, rows, position, token, confidence, scores, *on_device)

    def _commit(
        self,
        batch: Batch | WholeBatch,
        step: Tensor,
        rows: Tensor,
        position: Tensor,
        token: Tensor,
        confidence: Tensor,
        scores: RowScores,
        quota: Tensor | None,
        threshold: Tensor | None,
        gamma: Tensor | None,
    ) -> None:
        """Chooses among scored rows and writes canvas and record in place. rows, position: int32 [C]; token: int64 [C];
        confidence: float32 [C]; quota: int32 [n]; threshold, gamma: float32 [n]."""
        config, state = self.config, batch.state
        draws = config.alg_temp > 0 or config.select == "origin"
        logp_T = scores.logp if scores.logp_T is None else scores.logp_T
        ops.select_commit_(
            state.canvas,
            state.masked,
            rows,
            token,
            confidence,
            rule=config.select,
            quota=quota,
            threshold=threshold,
            entropy=scores.entropy if config.select == "entropy_bound" else None,
            discount=self.discount if gamma is not None else "none",
            gamma=gamma,
            eos_ids=None if gamma is None else self.eoser_ids,
            alg_temp=config.alg_temp,
            row_position=position if draws else None,
            seeds=state.seeds if draws else None,
            step=step,
            logp=None if state.commit_logp is None else scores.logp,
            logp_T=None if state.commit_logp_T is None else logp_T,
            commit_step=state.commit_step,
            commit_logp=state.commit_logp,
            commit_logp_T=state.commit_logp_T,
            commit_confidence=state.commit_confidence,
            masks_left=batch.masks_left,
            done=batch.done,
            next_rows=batch.next_rows,
        )
