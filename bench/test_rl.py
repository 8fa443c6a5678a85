"""An iteration of both sides at a small size, for `pytest bench/`. Ours includes what `train` does around it."""

from __future__ import annotations

from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from mdlm_fast.bench.suites.rl.agreement import check_agreement
from mdlm_fast.bench.suites.rl.case import WARM_UP_STEPS, Case, Vocabulary
from mdlm_fast.bench.suites.rl.sides import OurSide, PlainSide

CASE = Case("trained", WARM_UP_STEPS, batch=4, generated=64, updates=1, vocabulary=Vocabulary(32000, 31990, 31980))
GROUP = "CJ-GRPO, trained head, S=2, B=4, G=64, 32,000 tokens"


@pytest.mark.benchmark(group=GROUP)
def test_our_iteration(benchmark: BenchmarkFixture) -> None:
    def make() -> tuple[tuple[OurSide], dict[str, Any]]:
        return (OurSide(CASE, 0),), {}

    def train(side: OurSide) -> None:
        side.run(lambda number: None, lambda number, phases: True)

    check_agreement(CASE)
    benchmark.pedantic(train, setup=make, rounds=3, warmup_rounds=1)


@pytest.mark.benchmark(group=GROUP)
def test_released_iteration(benchmark: BenchmarkFixture) -> None:
    benchmark.pedantic(PlainSide(CASE).run, args=(CASE.steps,), rounds=3, warmup_rounds=1)
