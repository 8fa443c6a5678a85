"""Seconds of all sides' iterations in turns, so that a slow spell of the machine meets all of them."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...harness.results import OURS
from ...harness.timing import LEAST_ROUNDS
from ..settings import MOST_SECONDS
from .case import BLOCKS, WARM_UP_STEPS, Case
from .phases import OF_STEPS, lengthened
from .sides import OurSide, PlainSide

MOST_ROUNDS = 25


@dataclass
class Timed:
    """A side's iterations.

    Attributes:
        steps: that it ran; fewer than the case's where the whole would take too long, and its phases are then those of
            the whole by proportion.
        rounds: seconds by phase of each.
    """

    steps: int
    rounds: list[dict[str, float]] = field(default_factory=list)


def time_rounds(case: Case, seconds: float, released: Sequence[str]) -> dict[str, Timed]:
    """Times `LEAST_ROUNDS` rounds and more, up to `MOST_ROUNDS`, until our side has used `seconds`.

    Every side warms up with a short iteration; their order is drawn anew in every round.

    Args:
        released: the sides beside ours, of `case.CHECKPOINTING`.

    Returns:
        by side, ours first.
    """
    plain = {name: PlainSide(case, name) for name in released}
    ours, order = OurSide(case, MOST_ROUNDS), random.Random(0)
    timed = {OURS: Timed(case.steps)}
    for name, side in plain.items():
        short = side.run(WARM_UP_STEPS)
        timed[name] = Timed(affordable_steps(case, sum(short[phase] for phase in OF_STEPS) / WARM_UP_STEPS))
    names = list(timed)

    def run_plain(chosen: Sequence[str]) -> None:
        for name in chosen:
            gc.collect()
            phases = plain[name].run(timed[name].steps)
            timed[name].rounds.append(lengthened(phases, case.steps / timed[name].steps))

    def begin(number: int) -> None:
        if number:
            order.shuffle(names)
            run_plain(names[: names.index(OURS)])
        gc.collect()

    def end(number: int, phases: dict[str, float]) -> bool:
        if number:
            timed[OURS].rounds.append(phases)
            run_plain(names[names.index(OURS) + 1 :])
        used = sum(sum(phases.values()) for phases in timed[OURS].rounds)
        return number < LEAST_ROUNDS or used < seconds

    gc.collect()
    gc.freeze()  # what is there stays; a collection before an iteration looks at what the last one left alone
    try:
        ours.run(begin, end)
    finally:
        gc.unfreeze()
    return timed


def affordable_steps(case: Case, seconds: float) -> int:
    """The most steps, equally many a block, for which the released way takes at most MOST_SECONDS.

    seconds: of one step.
    """
    most = min(MOST_SECONDS / seconds, case.steps)
    return max(WARM_UP_STEPS, math.floor(most / BLOCKS) * BLOCKS)
