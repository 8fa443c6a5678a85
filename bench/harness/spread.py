"""Medians with quartiles, and ratios of what was measured in the same rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """A median with the quartiles around it.

    Attributes:
        median, low, high: in the unit of the samples; low and high are the first and third quartile.
        count: samples.
    """

    median: float
    low: float
    high: float
    count: int

    @staticmethod
    def of(samples: Sequence[float]) -> Spread:
        """Of one sample or more. Quartiles by linear interpolation, the samples' extremes included."""
        if len(samples) == 1:
            return Spread(samples[0], samples[0], samples[0], 1)
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return Spread(median, low, high, len(samples))


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Spread of the quotients of samples that were taken in the same round, so that a slow spell cancels.

    The sequences start with the same round; what the longer one has beyond the shorter is left out.
    """
    return Spread.of([a / b for a, b in zip(numerator, denominator, strict=False)])
