"""Seconds of an iteration, split by phase. Both sides' phases have the names of `bench.baselines.cj_grpo.PHASES`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from ...baselines.cj_grpo import PHASES
from ...harness.timing import synchronize

#: What the phases leave of an iteration: advantages, views, gradients set to zero, the loop itself.
OTHER = "other"
#: Phases that cost the same at every step of the rollout.
OF_STEPS = ("rollout", "old log-probs", "reference log-probs", "forward and backward")
#: Names under which the trainer logs its phases ("time/rollout", ...).
LOGGED = {
    "rollout": "rollout",
    "rewards": "reward",
    "old log-probs": "old",
    "reference log-probs": "ref",
    "forward and backward": "train",
}


class PhaseClock:
    """Wall-clock seconds of an iteration and its phases; on a GPU until the device has finished them."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.start()

    def start(self) -> None:
        """Begins an iteration."""
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._began = self.now()

    def now(self) -> float:
        """Seconds from an arbitrary start, once the device is idle."""
        synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a phase, one of `PHASES`."""
        began = self.now()
        yield
        self.add(name, self.now() - began)

    def add(self, name: str, seconds: float) -> None:
        """Counts seconds of a phase."""
        self._seconds[name] += seconds

    def stop(self) -> None:
        """Ends the iteration."""
        self._whole = self.now() - self._began

    def phases(self) -> dict[str, float]:
        """Seconds by phase of the iteration that ended; they add up to all of its time."""
        return {**self._seconds, OTHER: self._whole - sum(self._seconds.values())}


def lengthened(phases: Mapping[str, float], factor: float) -> dict[str, float]:
    """Phases of an iteration with `factor` times as many steps."""
    return {name: seconds * (factor if name in OF_STEPS else 1.0) for name, seconds in phases.items()}


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each phase."""
    return {name: statistics.median(phases[name] for phases in rounds) for name in rounds[0]}
