"""The suite of training: its cells, its check that can fail, its rounds, phases and peaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from mdlm_fast.bench.baselines import cj_grpo
from mdlm_fast.bench.harness.results import OURS
from mdlm_fast.bench.suites.rl import RELEASED, cases, cells, measure
from mdlm_fast.bench.suites.rl import rounds as timing
from mdlm_fast.bench.suites.rl.agreement import check_agreement, difference
from mdlm_fast.bench.suites.rl.case import Case, Vocabulary
from mdlm_fast.bench.suites.rl.peaks import peak_here
from mdlm_fast.bench.suites.rl.phases import OF_STEPS, OTHER, lengthened, medians
from mdlm_fast.bench.suites.rl.rounds import affordable_steps, bytes_of_a_step, fits, time_rounds
from mdlm_fast.bench.suites.rl.sides import PlainSide
from mdlm_fast.bench.suites.settings import Settings

CASE = Case("trained", steps=4, batch=2, generated=8, updates=2, vocabulary=Vocabulary(300, 290, 280))


@pytest.fixture(autouse=True)
def checked_anew() -> Iterator[None]:
    difference.cache_clear()
    yield
    difference.cache_clear()


@pytest.mark.parametrize(("full", "count"), [(False, 6), (True, 14)])
def test_cells_lie_on_lines_through_the_centre(full: bool, count: int) -> None:
    listed = [cell.case for cell in cells(Settings(full=full))]
    assert len({str(case) for case in listed}) == len(listed) == count
    centre = listed[0]
    assert centre["method"] == "CJ-GRPO" and centre["head"] == "trained" and centre["dtype"] == "float32"
    axes = ("steps", "batch", "generated", "updates")
    for case in listed:
        assert sum(case[axis] != centre[axis] for axis in axes) <= 1
    trained = [case for case in listed if case["head"] == "trained"]
    assert all(len({case[axis] for case in trained}) > 1 for axis in axes)
    assert {case["head"] for case in listed} == {"trained", "frozen"}
    assert {case.dtype for case in cases(Settings(device="cuda", full=full))} == {"bfloat16"}


@pytest.mark.parametrize("head", ["trained", "frozen"])
def test_both_sides_compute_the_same_update(head: str) -> None:
    assert "losses and gradients to" in check_agreement(replace(CASE, head=head))


def test_a_baseline_that_weighs_all_tokens_alike_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = cj_grpo.step_loss

    def of_all_tokens(new: Tensor, old: Tensor, reference: Any, revealed: Tensor, *rest: Any) -> Tensor:
        steps_share = revealed.sum() / (revealed.numel() / 4)
        return right(new, old, reference, revealed, *rest) * steps_share

    monkeypatch.setattr(cj_grpo, "step_loss", of_all_tokens)
    with pytest.raises(AssertionError, match=r"differ by .* of the largest entry \(head trained"):
        check_agreement(CASE)


def test_a_wrong_clip_range_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the second update has ratios that are not 1, after a step large enough for the clip to matter."""
    right = cj_grpo.PlainConfig
    monkeypatch.setattr(cj_grpo, "PlainConfig", lambda **settings: right(**{**settings, "epsilon": 1e-3}))
    with pytest.raises(AssertionError, match="differ by"):
        check_agreement(CASE)


def test_rounds_go_on_while_there_is_time_and_have_the_same_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LEAST_ROUNDS", 1)
    monkeypatch.setattr(timing, "MOST_ROUNDS", 2)
    rounds = time_rounds(CASE, seconds=1e9)
    assert rounds.plain_steps == CASE.steps and len(rounds.ours) == len(rounds.plain) == 2
    names = [*cj_grpo.PHASES, OTHER]
    for phases in (*rounds.ours, *rounds.plain):
        assert list(phases) == names
        assert all(phases[name] > 0 for name in ("rollout", "rewards", "forward and backward", "optimizer", OTHER))
    assert all(phases["old log-probs"] == 0 for phases in rounds.ours)  # the decoder's record
    assert all(phases["old log-probs"] > 0 for phases in rounds.plain)


def test_a_released_way_that_takes_too_long_runs_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(CASE, steps=32, batch=4)
    assert affordable_steps(case, seconds=1.0) == 32
    assert affordable_steps(case, seconds=5.0) == 12  # 60 seconds
    assert affordable_steps(case, seconds=8.0) == 6  # 7 do not divide into two blocks
    assert affordable_steps(case, seconds=100.0) == 2
    large = Case("trained", steps=128, batch=16, generated=256, updates=1)
    assert fits(case) and not fits(large)
    assert affordable_steps(large, seconds=0.01) == 8  # of 1.04 GB each
    phases = dict.fromkeys((*cj_grpo.PHASES, OTHER), 2.0)
    longer = lengthened(phases, 4.0)
    assert {name for name in phases if longer[name] == 8.0} == set(OF_STEPS)
    assert {longer[name] for name in phases if name not in OF_STEPS} == {2.0}
    assert medians([phases, longer, longer])["rollout"] == 8.0


def test_peaks_see_what_the_graphs_keep() -> None:
    case = replace(CASE, batch=4, generated=64, updates=1, vocabulary=Vocabulary(8000, 7990, 7980))
    assert peak_here(PlainSide, case) > case.steps * bytes_of_a_step(case)


@pytest.mark.slow
def test_a_record_has_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MOST_SECONDS", 1e-9)
    record = measure(replace(CASE, head="frozen"), seconds=0.0)
    assert set(record.sides) == {OURS, RELEASED} and record.case["head"] == "frozen" and record.work["tokens"] == 16
    ours, released = record.sides[OURS], record.sides[RELEASED]
    assert ours.seconds is not None and released.seconds is not None and released.ratio is not None
    assert ours.seconds.count == released.ratio.count == 3 and ours.ratio is None
    assert released.extrapolated_from == "2 of 4 steps" and ours.extrapolated_from is None
    assert released.agreement is not None and ours.peak_bytes and released.peak_bytes
    assert released.figures["phases"]["reference log-probs"] > 0
