"""Chunk: the completions of one optimizer step, as a method sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mdlm_fast.rl.objectives import until_first_eos
from mdlm_fast.rl.rollout import RolloutBatch
from mdlm_fast.trajectory import Trajectory


@dataclass(frozen=True)
class Chunk:
    """B completions of this process whose loss is normalised together.

    Attributes:
        trajectory, attention_mask, generated, seeds: as in `RolloutBatch`, of these completions.
        advantages: float32 [B], or [B, S] with one per step.
        groups: int64 [B], the prompt's group.
        eos_ids: ids that end a text.
        all_tokens: train on the filler behind the first EOS too.
        use_record: old log-probs may come from the rollout's record.
        tempered: training divides logits by the rollout's temperature.
        total: sums a tensor over the processes whose completions are normalised together (at least 1-d; trailing zeros
            are added where processes disagree about its length).
        scale: factor of all weights: gradients are averaged over processes (and micro-batches), the loss is a sum.
    """

    trajectory: Trajectory
    attention_mask: Tensor
    generated: Tensor
    seeds: Tensor
    advantages: Tensor
    groups: Tensor
    eos_ids: tuple[int, ...]
    all_tokens: bool
    use_record: bool
    tempered: bool
    total: Callable[[Tensor], Tensor]
    scale: float

    @classmethod
    def of(cls, batch: RolloutBatch, rows: slice, advantages: Tensor, groups: Tensor, **settings: object) -> Chunk:
        """The chunk of some rows of a rollout."""
        return cls(
            trajectory=batch.trajectory.select(rows),
            attention_mask=batch.attention_mask[rows],
            generated=batch.generated[rows],
            seeds=batch.seeds[rows],
            advantages=advantages[rows],
            groups=groups[rows],
            **settings,  # type: ignore[arg-type]
        )

    @property
    def trained(self) -> Tensor:
        """bool [B, L], positions that decoding wrote and training looks at."""
        written = self.trajectory.eligible & (self.trajectory.commit_step >= 0)
        if self.all_tokens:
            return written
        return written & (until_first_eos(self.trajectory.sequences, self.generated, self.eos_ids) | ~self.generated)

    @property
    def masked_canvas(self) -> Tensor:
        """int64 [B, L], the canvas before the first step: every position that decoding may write is a mask."""
        return torch.where(self.trajectory.eligible, self.trajectory.mask_id, self.trajectory.sequences)

    def recorded_logp(self) -> Tensor | None:
        """float32 [B, L], log-probs of the final tokens when they were drawn, at the temperature of training.

        None where the record is not to be used."""
        if not self.use_record:
            return None
        return self.trajectory.commit_logp_T if self.tempered else self.trajectory.commit_logp

    def committed(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """What a step wrote: (where bool [B, L], tokens int64 [B, L], recorded log-probs float32 [B, L] or None).

        With remasking a position may be written at several steps; each counts."""
        trajectory = self.trajectory
        where = trajectory.committed(step)
        if trajectory.events is None:
            return where, trajectory.sequences, self.recorded_logp()
        tokens, logp = trajectory.written(step)  # the record of events is untempered
        return where, tokens, logp if self.use_record and not self.tempered else None
