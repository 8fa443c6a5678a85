"""What every benchmark measures with: rounds, spreads, peaks of memory, the results file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from mdlm_fast.bench.harness import timing
from mdlm_fast.bench.harness.machine import environment
from mdlm_fast.bench.harness.memory import peak_bytes
from mdlm_fast.bench.harness.results import Record, Results, Side, timed_sides
from mdlm_fast.bench.harness.spread import Spread, ratio
from mdlm_fast.bench.harness.timing import Candidate


class Clock:
    """Time that passes only where a candidate says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def candidate(self, name: str, seconds: float, factor: float = 1.0) -> Candidate:
        """Takes so long and writes down its turn."""

        def call(i: int) -> None:
            self.order.append(name)
            self.now += seconds

        return Candidate(name, call, factor=factor)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_every_round_runs_each_candidate_once_and_a_slow_one_drops_out(clock: Clock) -> None:
    candidates = [clock.candidate("fast", 0.002), clock.candidate("slow", 0.01)]
    samples = timing.interleave(candidates, seconds=0.035, most_rounds=9)
    assert samples["fast"] == pytest.approx([0.002] * 9) and samples["slow"] == pytest.approx([0.01] * 4)
    timed = clock.order[-13:]  # what came before warmed up
    assert all(sorted(timed[2 * k : 2 * k + 2]) == ["fast", "slow"] for k in range(4))
    assert len({tuple(timed[2 * k : 2 * k + 2]) for k in range(4)}) == 2  # neither is always first
    assert timed[8:] == ["fast"] * 5


def test_a_candidate_without_time_left_still_has_the_least_rounds(clock: Clock) -> None:
    samples = timing.interleave([clock.candidate("slow", 5.0)], seconds=0.1)
    assert samples == {"slow": pytest.approx([5.0] * timing.LEAST_ROUNDS)}


def test_a_short_call_is_repeated_until_the_clock_can_tell(clock: Clock) -> None:
    samples = timing.interleave([clock.candidate("short", timing.LEAST_SAMPLE / 100)], seconds=0.0)
    assert samples["short"] == pytest.approx([timing.LEAST_SAMPLE / 100] * timing.LEAST_ROUNDS)
    assert len(clock.order) == 4 + 100 * timing.LEAST_ROUNDS


def test_the_argument_counts_up() -> None:
    seen: list[int] = []
    timing.interleave([Candidate("short", seen.append)], seconds=0.0, most_rounds=1)
    assert seen == list(range(len(seen))) and len(seen) > 4


def test_a_part_is_scaled_to_the_whole(clock: Clock) -> None:
    samples = timing.interleave([clock.candidate("part", 0.25, factor=8.0)], seconds=0.9)
    assert samples["part"] == [2.0] * 4  # its own time counts, not the whole's


def test_threads_are_those_asked_for_and_put_back() -> None:
    before, seen = torch.get_num_threads(), Counter[int]()
    torch.set_num_threads(2)
    try:
        candidates = [
            Candidate("one", lambda i: seen.update([torch.get_num_threads()]), threads=1),
            Candidate("all", lambda i: seen.update([torch.get_num_threads()])),
        ]
        timing.interleave(candidates, seconds=0.0, most_rounds=1)
        assert torch.get_num_threads() == 2 and set(seen) == {1, 2}
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 25])
def test_quartiles_are_numpys(count: int) -> None:
    samples = np.random.default_rng(count).exponential(size=count).tolist()
    spread = Spread.of(samples)
    expected = np.quantile(samples, [0.5, 0.25, 0.75])
    np.testing.assert_allclose([spread.median, spread.low, spread.high], expected)
    assert spread.count == count


def test_a_slow_spell_cancels_in_ratios() -> None:
    machine = [1.0, 1.0, 3.0, 1.5]  # how slow it was in each round
    sides = timed_sides({"ours": [2 * m for m in machine], "LLaDA": [10 * m for m in machine[:3]]})
    assert sides["ours"].ratio is None
    assert sides["LLaDA"].ratio == ratio([10.0, 10.0, 30.0], [2.0, 2.0, 6.0]) == Spread(5.0, 5.0, 5.0, 3)


def test_a_peak_is_what_a_call_allocates_beyond_what_is_expected() -> None:
    size = 64 * 2**20
    kept = torch.ones(2**20)  # in use before: does not count

    def call() -> float:
        return float(torch.ones(size // 4).sum() + kept.sum())

    assert abs(peak_bytes(call) - size) < 2**21
    assert abs(peak_bytes(call, expected=size // 2) - size // 2) < 2**21
    assert peak_bytes(lambda: None, expected=size) == 0


def record(rows: int, seconds: float) -> Record:
    sides = {
        "ours": Side(Spread.of([seconds]), figures={"forwards": 8}),
        "LLaDA": Side(verdict="does not fit: 19.4 GB"),
    }
    return Record("kernels", {"op": "score_rows", "rows": rows}, sides, {"bytes": 1e6})


def test_a_cell_replaces_its_record_and_other_machines_keep_theirs(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "results.json"
    results = Results.load(path)
    here = environment("cpu")
    first = results.start_run({**here, "machine": "here", "date": "2026-01-01 10:00"})
    results.put(record(1, 1.0), first)
    results.put(record(8, 2.0), first)
    there = results.start_run({**here, "machine": "there", "date": "2026-01-02 10:00"})
    results.put(record(1, 3.0), there)
    results.save(path)

    results = Results.load(path)
    second = results.start_run({**here, "machine": "here", "date": "2026-01-03 10:00"})
    results.put(record(1, 4.0), second)
    assert set(results.runs) == {first, there, second}
    results.put(record(8, 5.0), second)
    assert set(results.runs) == {there, second}  # nothing is left of the first
    results.save(path)

    results = Results.load(path)
    assert results.machines() == ["there", "here"]
    seconds = {
        (machine, r.case["rows"]): r.sides["ours"].seconds.median  # type: ignore[union-attr]
        for machine in results.machines()
        for r in results.select("kernels", machine)
    }
    assert seconds == {("there", 1): 3.0, ("here", 1): 4.0, ("here", 8): 5.0}
    assert [r.run for r in results.select("kernels", "here", rows=8)] == [second]
    assert next(results.select("kernels", rows=8)).sides == record(8, 5.0).sides
    assert list(results.select("decode")) == []
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 1}', '{"format": 1, "runs": {}, "records": [{"a": 1}]}']
)
def test_a_torn_or_foreign_file_is_refused_by_name(content: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"results\.json is not a file that `mdlm-fast bench` wrote"):
        Results.load(path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"format": 99, "runs": {}, "records": []}))
    with pytest.raises(ValueError, match="has format 99; this version reads format 1"):
        Results.load(path)


def test_the_machine_is_described_in_json() -> None:
    here = json.loads(json.dumps(environment("cpu")))
    assert here["threads"] == torch.get_num_threads() and here["cache_bytes"] > 0 < here["memory_bytes"]
    assert here["packages"]["torch"] == torch.__version__
