"""Figures that follow from a record: rates, shares of what was measured in the same rounds, exponents of cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..harness.results import CEILING, ONE_THREAD, OURS, READ, Record, Side
from ..harness.spread import Spread

#: Sides that do less than the work of the cell, so that being faster than ours is no win of theirs.
LESS_WORK = (READ, "library GEMM alone")


def baselines(record: Record) -> dict[str, Side]:
    """Sides that do the whole work in another way than this package's default: what ours wins or loses against."""
    return {
        name: side
        for name, side in record.sides.items()
        if name not in (CEILING, *LESS_WORK) and not name.startswith(OURS)  # "ours, 1 thread", "ours again", ...
    }


def loses(side: Side) -> bool:
    """Whether ours is slower than this side, by the median of the ratios."""
    return side.ratio is not None and side.ratio.median < 1


def keeps_up(side: Side) -> bool:
    """Whether this side is as fast as ours or faster, by the median of the ratios."""
    return side.ratio is not None and side.ratio.median <= 1


def best_baseline(record: Record) -> tuple[str, Spread] | None:
    """The baseline that comes nearest to ours (or is ahead of it) and the ratio of its seconds to ours."""
    ratios = [(name, side.ratio) for name, side in baselines(record).items() if side.ratio is not None]
    return min(ratios, key=lambda found: found[1].median, default=None)


def rate(record: Record, work: str, name: str = OURS) -> float | None:
    """Work a second of a side: bytes, operations or tokens, from the median of its seconds."""
    side = record.sides.get(name)
    if side is None or side.seconds is None or work not in record.work:
        return None
    return record.work[work] / side.seconds.median


def gb_per_s(record: Record, name: str = OURS) -> float | None:
    """Gigabytes (1e9) a second that a side reads and writes, were it to touch each byte once."""
    found = rate(record, "bytes", name)
    return None if found is None else found / 1e9


def gflop_per_s(record: Record, name: str = OURS) -> float | None:
    """1e9 useful floating-point operations a second."""
    found = rate(record, "operations", name)
    return None if found is None else found / 1e9


def intensity(record: Record) -> float | None:
    """Floating-point operations a byte, of the useful work: the roofline's horizontal axis."""
    if not record.work.get("bytes") or not record.work.get("operations"):
        return None
    return record.work["operations"] / record.work["bytes"]


def share_of_read(record: Record) -> Spread | None:
    """Seconds of merely reading the op's bytes over ours, paired by round: 1 is the limit of memory bandwidth."""
    return record.sides[READ].ratio if READ in record.sides else None


def thread_scaling(record: Record) -> Spread | None:
    """Seconds with one thread over seconds with all, paired by round."""
    return record.sides[ONE_THREAD].ratio if ONE_THREAD in record.sides else None


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers, at least one: the mean that treats a ratio and its inverse alike."""
    return math.exp(sum(math.log(value) for value in values) / len(values))


@dataclass(frozen=True)
class Fit:
    """seconds = scale * size ** exponent, by least squares on logarithms.

    Attributes:
        error: standard error of the exponent; None with two points, through which a line always passes.
        first, last: sizes between which it was fitted.
    """

    exponent: float
    error: float | None
    scale: float
    first: float
    last: float

    def seconds(self, size: float) -> float:
        return float(self.scale * size**self.exponent)


def bound_by_work(sizes: Sequence[float], seconds: Sequence[float]) -> int:
    """Where the line begins to be bound by work and not by a call's fixed cost.

    That is Hockney's half-performance length: the first point whose rate (size over seconds) is at least half of the
    best rate of the line. What lies behind it always counts, so growing cost (caches, attention) is seen.

    Args:
        sizes: ascending.
        seconds: as many.

    Returns:
        its index.
    """
    rates = np.asarray(sizes) / np.asarray(seconds)
    return int(np.argmax(rates >= rates.max() / 2))


def fit(sizes: Sequence[float], seconds: Sequence[float]) -> Fit | None:
    """The exponent of cost over the points that are bound by work; None with fewer than two of them.

    Args:
        sizes: positive, ascending.
        seconds: positive, as many.
    """
    start = bound_by_work(sizes, seconds)
    x, y = np.log(sizes[start:]), np.log(seconds[start:])
    if len(x) < 2:
        return None
    if len(x) == 2:
        exponent, constant = np.polyfit(x, y, 1)
        error = None
    else:
        (exponent, constant), covariance = np.polyfit(x, y, 1, cov=True)
        error = float(np.sqrt(covariance[0, 0]))
    return Fit(float(exponent), error, float(np.exp(constant)), float(sizes[start]), float(sizes[-1]))
