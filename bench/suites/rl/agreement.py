"""Whether both sides compute the same update."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from ...baselines import cj_grpo
from ...baselines.eoser import Rollout
from .case import CHECKPOINTING, QUARTER, RELEASED, Case
from .sides import OurSide, plain_config

TOLERANCE = 1e-4
VOCABULARY = QUARTER  # of the model that is checked


def check_agreement(case: Case, name: str = RELEASED) -> str:
    """How ours and the released way of this name agree, on a small rollout of the case's kind.

    Its blocks of 9 tokens take two steps each, so steps differ in tokens, and a token's weight in the loss with them.

    Raises:
        AssertionError: they do not.
    """
    small = replace(case, steps=4, batch=2, generated=18, updates=2, dtype="float32", vocabulary=VOCABULARY)
    worst = difference(replace(small, learning_rate=1e-3, max_grad_norm=0.0), name)
    if not worst < TOLERANCE:
        raise AssertionError(
            f"losses and gradients of ours and of {name} differ by {worst:.1e} of the largest entry (head {case.head}, "
            f"allowed: {TOLERANCE:.0e})"
        )
    sizes = f"S={small.steps}, B={small.batch}, G={small.generated}, {VOCABULARY.size:,} tokens"
    layers = "layers computed again" if CHECKPOINTING[name] else "layers kept as ours keeps them"
    return f"losses and gradients to {worst:.1e} of the largest entry ({sizes}, float32, {layers})"


@cache
def difference(case: Case, name: str) -> float:
    """The largest difference of losses and gradients on one trajectory, relative to the largest entry of each tensor.

    The released way replays our rollout. Both updates of an iteration are compared, the
    second after a large step, so with ratios that are not 1.
    """
    ours = OurSide(case, 1)
    comparison = Comparison(case, ours, name)
    ours.trainer.add_callback(comparison)
    ours.run(lambda _: None, lambda number, phases: True)
    return max(comparison.differences)


class Comparison(TrainerCallback):
    """Computes loss and gradients of every update the released way too."""

    def __init__(self, case: Case, ours: OurSide, name: str) -> None:
        self.case, self.ours, self.name = case, ours, name
        self.differences: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer, model = self.ours.trainer, self.ours.model
        if trainer.buffer is not None:  # it is dropped with the last update on it
            self.buffer = trainer.buffer
        states = list(self.buffer.batch.trajectory)
        trajectory = plain_rollout(states, self.case.generated)
        config = plain_config(self.case, steps=len(states) - 1)
        if state.global_step % self.case.updates == 0:
            self.old = cj_grpo.trajectory_logps(model, trajectory, config)
        reference = cj_grpo.reference_logps(model, trajectory, config)
        twin = copy.deepcopy(model)
        twin.zero_grad()
        cj_grpo.set_checkpointing(twin, CHECKPOINTING[self.name])
        loss = cj_grpo.trajectory_loss(twin, trajectory, self.buffer.advantages, self.old, reference, config)
        loss.backward()
        self.differences.append(abs(trainer.losses[-1] - loss.item()) / max(abs(loss.item()), 1.0))
        named = dict(model.named_parameters())
        for name, parameter in twin.named_parameters():
            if parameter.requires_grad:
                self.differences.append(relative_difference(named[name].grad, parameter.grad))


def plain_rollout(states: list[Tensor], generated: int) -> Rollout:
    """The clones and masks that the released way would have kept of these states, int64 [B, P + G]."""
    revealed = [(before != after)[:, -generated:] for before, after in pairwise(states)]
    return Rollout(states, revealed)


def relative_difference(value: Tensor | None, expected: Tensor | None) -> float:
    assert value is not None and expected is not None
    return float((value - expected).abs().max() / expected.abs().max())
