"""An iteration of both sides at a small size, for `pytest bench/`."""

from __future__ import annotations

from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from mdlm_fast.bench.suites.rl.agreement import check_agreement
from mdlm_fast.bench.suites.rl.case import QUARTER, WARM_UP_STEPS, Case
from mdlm_fast.bench.suites.rl.sides import OurSide, PlainSide

CASE = Case("trained", WARM_UP_STEPS, batch=4, generated=64, updates=1, vocabulary=QUARTER)
GROUP = "CJ-GRPO, trained head, S=2, B=4, G=64, 32,000 tokens"


class IterationClock:
    """A timer that moves in iterations alone: not while a trainer is set up, starts, warms up or ends."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def __call__(self) -> float:
        """Seconds of all iterations so far."""
        return self._seconds

    def add(self, phases: dict[str, float]) -> None:
        """Counts an iteration, given its seconds by phase."""
        self._seconds += sum(phases.values())


CLOCK = IterationClock()


@pytest.mark.benchmark(group=GROUP, timer=CLOCK)
def test_our_iteration(benchmark: BenchmarkFixture) -> None:
    def make() -> tuple[tuple[OurSide], dict[str, Any]]:
        return (OurSide(CASE, 1),), {}

    def end(number: int, phases: dict[str, float]) -> bool:
        if number:  # the one before warms up
            CLOCK.add(phases)
        return True

    def train(side: OurSide) -> None:
        side.run(lambda number: None, end)

    check_agreement(CASE)
    benchmark.pedantic(train, setup=make, rounds=3)


@pytest.mark.benchmark(group=GROUP, timer=CLOCK)
def test_released_iteration(benchmark: BenchmarkFixture) -> None:
    side = PlainSide(CASE)
    benchmark.pedantic(lambda: CLOCK.add(side.run(CASE.steps)), rounds=3, warmup_rounds=1)
