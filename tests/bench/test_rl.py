"""The suite of training: its cells, its check that can fail, its rounds, phases and peaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from mdlm_fast.bench.baselines import cj_grpo
from mdlm_fast.bench.harness.results import OURS
from mdlm_fast.bench.harness.spread import Spread
from mdlm_fast.bench.suites.rl import KEPT, RELEASED, agreement, cases, cells, peaks
from mdlm_fast.bench.suites.rl import rounds as timing
from mdlm_fast.bench.suites.rl.agreement import check_agreement, difference
from mdlm_fast.bench.suites.rl.case import Case, Vocabulary
from mdlm_fast.bench.suites.rl.cells import released_sides
from mdlm_fast.bench.suites.rl.needs import needed_bytes
from mdlm_fast.bench.suites.rl.peaks import peak_here
from mdlm_fast.bench.suites.rl.phases import OF_STEPS, OTHER, lengthened, medians
from mdlm_fast.bench.suites.rl.rounds import Timed, affordable_steps, time_rounds
from mdlm_fast.bench.suites.rl.sides import PlainSide, plain_config
from mdlm_fast.bench.suites.settings import Settings

suite = import_module("mdlm_fast.bench.suites.rl.cells")  # its package has a function of that name

CASE = Case("trained", steps=4, batch=2, generated=8, updates=2, vocabulary=Vocabulary(300, 290, 280))


@pytest.fixture(autouse=True)
def checked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(agreement, "VOCABULARY", CASE.vocabulary)
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


@pytest.mark.parametrize(("full", "heads"), [(False, ["trained"]), (True, ["trained", "frozen"])])
def test_layers_are_kept_at_the_centre_alone(full: bool, heads: list[str]) -> None:
    kept = [case for case in cases(Settings(full=full)) if KEPT in released_sides(case, full)]
    assert [case.head for case in kept] == heads
    assert {replace(case, head="trained") for case in kept} == {next(iter(cases(Settings(full=full))))}


@pytest.mark.parametrize(("head", "name"), [("trained", KEPT), ("frozen", RELEASED)])
def test_both_sides_compute_the_same_update(head: str, name: str) -> None:
    found = check_agreement(replace(CASE, head=head), name)
    assert "losses and gradients to" in found and ("kept" in found) == (name == KEPT)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head", ["trained", "frozen"])
def test_the_released_way_has_the_logits_of_its_model(head: str, dtype: str) -> None:
    """Rounding float32 logits to bfloat16 would cost a pass over them that the released way does not make."""
    side = PlainSide(replace(CASE, head=head, dtype=dtype))
    logits = side.model(input_ids=side.prompts, use_cache=False).logits
    assert logits.dtype == plain_config(side.case).dtype == getattr(torch, dtype)


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
    timed = time_rounds(CASE, seconds=1e9, released=(RELEASED, KEPT))
    assert list(timed) == [OURS, RELEASED, KEPT]
    for name, side in timed.items():
        assert side.steps == CASE.steps and len(side.rounds) == 2
        for phases in side.rounds:
            assert list(phases) == [*cj_grpo.PHASES, OTHER]
            assert all(seconds > 0 for phase, seconds in phases.items() if "log-probs" not in phase)
            assert (phases["old log-probs"] == 0) == (name == OURS)  # ours has the decoder's record


def test_a_released_way_that_takes_too_long_runs_fewer_steps() -> None:
    case = replace(CASE, steps=32, batch=4)
    assert affordable_steps(case, seconds=1.0) == 32
    assert affordable_steps(case, seconds=5.0) == 12  # 60 seconds
    assert affordable_steps(case, seconds=8.0) == 6  # 7 do not divide into two blocks
    assert affordable_steps(case, seconds=100.0) == 2
    phases = dict.fromkeys((*cj_grpo.PHASES, OTHER), 2.0)
    longer = lengthened(phases, 4.0)
    assert {name for name in phases if longer[name] == 8.0} == set(OF_STEPS)
    assert {longer[name] for name in phases if name not in OF_STEPS} == {2.0}
    assert medians([phases, longer, longer])["rollout"] == 8.0


@pytest.mark.parametrize(("vocab", "name"), [(8000, RELEASED), (300, KEPT)])
def test_the_least_that_is_needed_is_most_of_it(vocab: int, name: str) -> None:
    """Where log-softmaxes are the most of it, and where layers are."""
    case = replace(CASE, batch=4, generated=64, updates=1, vocabulary=Vocabulary(vocab, vocab - 10, vocab - 20))
    least = needed_bytes(case, name)
    assert least < peak_here(case, name) < 1.5 * least


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "MOST_BYTES", (needed_bytes(CASE, RELEASED) + needed_bytes(CASE, KEPT)) // 2)
    monkeypatch.setattr(peaks, "peak_bytes", lambda case, name: 1)
    monkeypatch.setattr(agreement, "check_agreement", lambda case, name: f"{name} agrees")

    def stub(case: Case, seconds: float, released: tuple[str, ...]) -> dict[str, Timed]:
        return {name: Timed(case.steps, [{"rollout": 2.0}, {"rollout": 4.0}]) for name in (OURS, *released)}

    monkeypatch.setattr(timing, "time_rounds", stub)
    record = suite.measure(CASE, 0.0, (RELEASED, KEPT))
    released, kept = record.sides[RELEASED], record.sides[KEPT]
    assert released.seconds == Spread(3.0, 2.5, 3.5, 2) and released.peak_bytes == 1 and released.verdict is None
    assert released.figures == {"phases": {"rollout": 3.0}} and released.agreement == f"{RELEASED} agrees"
    assert kept.verdict == f"does not fit: needs at least {needed_bytes(CASE, KEPT) / 1e9:.1f} GB"
    assert kept.seconds is None and kept.peak_bytes is None and kept.agreement == f"{KEPT} agrees"


@pytest.mark.slow
def test_a_record_has_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MOST_SECONDS", 1e-9)
    record = suite.measure(replace(CASE, head="frozen"), seconds=0.0)
    assert set(record.sides) == {OURS, RELEASED} and record.case["head"] == "frozen" and record.work["tokens"] == 16
    ours, released = record.sides[OURS], record.sides[RELEASED]
    assert ours.seconds is not None and released.seconds is not None and released.ratio is not None
    assert ours.seconds.count == released.ratio.count == 3 and ours.ratio is None
    assert released.extrapolated_from == "2 of 4 steps" and ours.extrapolated_from is None
    assert released.agreement is not None and ours.peak_bytes and released.peak_bytes
    assert released.figures["phases"]["reference log-probs"] > 0
