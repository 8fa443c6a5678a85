"""The cells of the suite: a centre and a line through it along each size, with the LM head trained and frozen.

At the centre the released way is a side twice, the second time with its layers kept as ours keeps them (in the small
set with the head trained alone).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ...harness import results
from ...harness.results import Record, Side
from ..settings import MOST_BYTES, Cell, Settings
from .case import KEPT, RELEASED, Case
from .phases import medians

if TYPE_CHECKING:
    from .rounds import Timed

#: Small enough for a few minutes on two cores.
SMALL_CENTRE = Case("trained", steps=4, batch=2, generated=16, updates=1)
SMALL = {"steps": (4, 8), "batch": (2, 4), "generated": (16, 32), "updates": (1, 2)}
FULL_CENTRE = Case("trained", steps=8, batch=4, generated=64, updates=2)
FULL = {"steps": (4, 8, 16, 32), "batch": (2, 4, 8), "generated": (32, 64, 128), "updates": (1, 2, 4)}


def cells(settings: Settings) -> Iterator[Cell]:
    """One for each case."""
    for case in cases(settings):
        yield Cell("rl", case.record(), partial(measure, case, settings.seconds, released_sides(case, settings.full)))


def released_sides(case: Case, full: bool) -> tuple[str, ...]:
    """Names of the sides beside ours."""
    centre = replace(FULL_CENTRE if full else SMALL_CENTRE, dtype=case.dtype, device=case.device)
    if full:  # the small set spares the frozen head
        centre = replace(centre, head=case.head)
    return (RELEASED, KEPT) if case == centre else (RELEASED,)


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


def measure(case: Case, seconds: float, released: Sequence[str] = (RELEASED,)) -> Record:
    """Checks that all sides agree, times them and takes their peaks.

    Args:
        seconds: that our side may use for more than the least number of rounds.
        released: the sides beside ours. One that needs more than MOST_BYTES is not run and has a verdict.
    """
    # Here, because they need accelerate and peft, which nobody needs to list the cells.
    from .agreement import check_agreement
    from .needs import needed_bytes
    from .peaks import peak_bytes
    from .rounds import time_rounds

    needed = {name: needed_bytes(case, name) for name in released}
    agreements = {name: check_agreement(case, name) for name in released}
    sides = timed_sides(time_rounds(case, seconds, [name for name in released if needed[name] <= MOST_BYTES]), case)
    for name, side in sides.items():
        side.peak_bytes = peak_bytes(case, name)
    for name in released:
        large = Side(verdict=f"does not fit: needs at least {needed[name] / 1e9:.1f} GB")
        sides.setdefault(name, large).agreement = agreements[name]
    return Record("rl", case.record(), sides, {"tokens": case.batch * case.generated})


def timed_sides(timed: Mapping[str, Timed], case: Case) -> dict[str, Side]:
    """Sides of what was timed."""
    whole = {name: [sum(phases.values()) for phases in side.rounds] for name, side in timed.items()}
    sides = results.timed_sides(whole)
    for name, side in timed.items():
        sides[name].figures = {"phases": medians(side.rounds)}
        if side.steps != case.steps:
            sides[name].extrapolated_from = f"{side.steps} of {case.steps} steps"
    return sides
