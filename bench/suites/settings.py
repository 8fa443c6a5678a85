"""What a suite is asked to measure, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..harness.results import Record

#: A side that would need more is not run whole: it runs one step and is extrapolated, or "does not fit".
MOST_BYTES = 10_000_000_000
MOST_SECONDS = 60.0


@dataclass(frozen=True)
class Settings:
    """Of a run.

    Attributes:
        device: "cpu" or "cuda".
        full: the whole matrix, else the small set that `make bench` runs.
        seconds: that one candidate of a cell may use, at least `timing.LEAST_ROUNDS` rounds.
    """

    device: str = "cpu"
    full: bool = False
    seconds: float = 0.2


@dataclass(frozen=True)
class Cell:
    """Something to measure: `measure` gives a record with this case."""

    suite: str
    case: dict[str, Any]
    measure: Callable[[], Record]
