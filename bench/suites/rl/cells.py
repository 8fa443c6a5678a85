"""The cells of the suite: a centre and a line through it along each size, with the LM head trained and frozen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ...harness.results import OURS, Record, Side
from ...harness.spread import Spread, ratio
from ..settings import Cell, Settings
from .case import Case
from .phases import medians

if TYPE_CHECKING:
    from .rounds import Rounds

RELEASED = "CJ-GRPO as released"

#: Small enough for a few minutes on two cores.
SMALL_CENTRE = Case("trained", steps=4, batch=2, generated=32, updates=1)
SMALL = {"steps": (4, 8), "batch": (2, 4), "generated": (16, 32), "updates": (1, 2)}
FULL_CENTRE = Case("trained", steps=8, batch=4, generated=64, updates=2)
FULL = {"steps": (4, 8, 16, 32), "batch": (2, 4, 8), "generated": (32, 64, 128), "updates": (1, 2, 4)}


def cells(settings: Settings) -> Iterator[Cell]:
    """One for each case."""
    for case in cases(settings):
        yield Cell("rl", case.record(), partial(measure, case, settings.seconds))


def cases(settings: Settings) -> Iterator[Case]:
    """The centre with the head trained and frozen, and its neighbours along each axis.

    The small set goes along the axes with a trained head alone, the full set goes along the steps with both."""
    centre, axes = (FULL_CENTRE, FULL) if settings.full else (SMALL_CENTRE, SMALL)
    dtype = "bfloat16" if torch.device(settings.device).type == "cuda" else "float32"
    for head in ("trained", "frozen"):
        at = replace(centre, head=head, dtype=dtype, device=settings.device)
        yield at
        for axis, values in axes.items():
            if head == "trained" or (settings.full and axis == "steps"):
                changes: list[dict[str, Any]] = [{axis: value} for value in values if value != getattr(at, axis)]
                yield from (replace(at, **change) for change in changes)


def measure(case: Case, seconds: float) -> Record:
    """Checks that both sides agree, times them and takes their peaks.

    Args:
        seconds: that our side may use for more than the least number of rounds.
    """
    # Here, because they need accelerate and peft, which nobody needs to list the cells.
    from .agreement import check_agreement
    from .peaks import peak_bytes
    from .rounds import fits, time_rounds
    from .sides import OurSide, PlainSide

    agreement = check_agreement(case)
    ours, released = sides(time_rounds(case, seconds), case)
    ours.peak_bytes = peak_bytes(OurSide, case)
    released.peak_bytes = peak_bytes(PlainSide, case) if fits(case) else None
    released.agreement = agreement
    return Record("rl", case.record(), {OURS: ours, RELEASED: released}, {"tokens": case.batch * case.generated})


def sides(rounds: Rounds, case: Case) -> tuple[Side, Side]:
    """Ours and the released way, of what was timed."""
    ours, plain = ([sum(phases.values()) for phases in side] for side in (rounds.ours, rounds.plain))
    part = None if rounds.plain_steps == case.steps else f"{rounds.plain_steps} of {case.steps} steps"
    return (
        Side(Spread.of(ours), figures={"phases": medians(rounds.ours)}),
        Side(Spread.of(plain), ratio(plain, ours), extrapolated_from=part, figures={"phases": medians(rounds.plain)}),
    )
