"""Seconds of both sides' iterations in turns, so that a slow spell of the machine meets both."""

from __future__ import annotations

import gc
import math
import random
from dataclasses import dataclass, field

from ...harness.timing import LEAST_ROUNDS
from ..settings import MOST_BYTES, MOST_SECONDS
from .case import BLOCKS, WARM_UP_STEPS, Case
from .phases import OF_STEPS, lengthened
from .sides import OurSide, PlainSide, plain_config

MOST_ROUNDS = 25


@dataclass
class Rounds:
    """Seconds by phase of each round's iterations.

    Attributes:
        plain_steps: that the released way ran; fewer than the case's where the whole would take too long, and its
            phases are then those of the whole by proportion.
    """

    plain_steps: int
    ours: list[dict[str, float]] = field(default_factory=list)
    plain: list[dict[str, float]] = field(default_factory=list)


def time_rounds(case: Case, seconds: float) -> Rounds:
    """Times `LEAST_ROUNDS` rounds and more, up to `MOST_ROUNDS`, until our side has used `seconds`.

    Both sides warm up with a short iteration, and take turns in going first.
    """
    plain, ours, order = PlainSide(case), OurSide(case, MOST_ROUNDS), random.Random(0)
    short = plain.run(WARM_UP_STEPS)
    a_step = sum(short[name] for name in OF_STEPS) / WARM_UP_STEPS
    rounds = Rounds(affordable_steps(case, a_step))
    plain_first = False

    def run_plain() -> None:
        gc.collect()
        phases = plain.run(rounds.plain_steps)
        rounds.plain.append(lengthened(phases, case.steps / rounds.plain_steps))

    def begin(number: int) -> None:
        nonlocal plain_first
        plain_first = order.random() < 0.5
        if number and plain_first:
            run_plain()
        gc.collect()

    def end(number: int, phases: dict[str, float]) -> bool:
        if number:
            rounds.ours.append(phases)
            if not plain_first:
                run_plain()
        used = sum(sum(phases.values()) for phases in rounds.ours)
        return number < LEAST_ROUNDS or used < seconds

    ours.run(begin, end)
    return rounds


def affordable_steps(case: Case, seconds: float) -> int:
    """The most steps, equally many a block, for which the released way takes at most MOST_SECONDS and MOST_BYTES.

    seconds: of one step.
    """
    most = min(MOST_SECONDS / seconds, MOST_BYTES / bytes_of_a_step(case), case.steps)
    return max(WARM_UP_STEPS, math.floor(most / BLOCKS) * BLOCKS)


def fits(case: Case) -> bool:
    """Whether the released way keeps at most MOST_BYTES."""
    return case.steps * bytes_of_a_step(case) <= MOST_BYTES


def bytes_of_a_step(case: Case) -> int:
    """What the graph of one step holds at least: the log-softmax of all generated positions."""
    return case.batch * case.generated * case.vocabulary.size * plain_config(case).dtype.itemsize
