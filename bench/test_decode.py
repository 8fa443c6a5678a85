"""Short decodes over the whole canvas, ours and published, for `pytest bench/`: 16 tokens of 32,000 ids in 4 steps."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from mdlm_fast.bench.suites.decode.cell import decode
from mdlm_fast.bench.suites.decode.check import agreement, timed_model
from mdlm_fast.bench.suites.decode.shape import Shape
from mdlm_fast.bench.suites.decode.systems import SYSTEMS

CASES = [("LLaDA", 0.0), ("LLaDA", 0.7), ("EOSER/CJ-GRPO rollout", 0.7), ("Dream", 0.0)]
DECODES = [
    pytest.param(decoder, temperature, side, marks=pytest.mark.benchmark(group=f"{decoder}, T = {temperature:g}"))
    for decoder, temperature in CASES
    for side in ("ours", decoder)
]


@pytest.mark.parametrize(("decoder", "temperature", "side"), DECODES)
def test_decode(benchmark: BenchmarkFixture, decoder: str, temperature: float, side: str) -> None:
    shape = Shape(decoder, generated=16, layout="canvas", temperature=temperature, vocab=32000)
    agreement(shape, "cpu")
    system = SYSTEMS[decoder]
    how = system.ours if side == "ours" else system.baseline
    benchmark.pedantic(decode(how, timed_model(shape.vocab, "cpu"), shape, "cpu"), rounds=3, warmup_rounds=1)
