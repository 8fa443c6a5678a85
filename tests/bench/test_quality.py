"""The quality suite: its points are decoders that exist, and its figures are those of a decode."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from mdlm_fast.bench.suites import quality
from mdlm_fast.bench.suites.settings import Settings
from mdlm_fast.tasks import evaluate


@pytest.mark.parametrize("full", [False, True])
def test_every_cell_has_a_case_of_its_own_and_a_config(full: bool) -> None:
    cells = list(quality.cells(Settings(full=full)))
    assert len({tuple(cell.case.values()) for cell in cells}) == len(cells)
    for curve in quality.CURVES:
        assert set(curve.few) <= set(curve.values)
        assert all(curve.config(value).gen_length == quality.LENGTH for value in curve.values)


def test_figures_of_a_point() -> None:
    curve = next(curve for curve in quality.CURVES if curve.decoder == "Fast-dLLM, threshold")
    case = {"decoder": curve.decoder, "task": "sudoku", "setting": "threshold=0.9", "temperature": 0.0}
    record = quality.measure(Settings(seconds=0.0), case, curve, 0.9, puzzles=20)
    (side,) = record.sides.values()
    expected = evaluate(quality.built_in("cpu"), "sudoku", limit=20, config=curve.config(0.9))
    assert record.suite == "quality" and record.case == case and record.work == {"tokens": 24}
    assert side.figures["accuracy"] == expected["accuracy"] and side.figures["puzzles"] == 20
    assert side.figures["forwards"] == expected["forwards_per_answer"]
    assert side.figures["tokens_per_forward"] * side.figures["forwards"] == pytest.approx(24)
    assert side.seconds is not None and side.seconds.median > 0
    for batch in (16, 64):
        puzzles, tokens = (side.figures[f"batch_{batch}_{what}_per_second"] for what in ("puzzles", "tokens"))
        assert tokens == pytest.approx(24 * puzzles) and puzzles > 0
    assert side.agreement is not None and side.agreement.endswith("answers equal those at batch 64")


def test_points_off_the_middle_are_not_timed() -> None:
    curve = quality.CURVES[0]
    record = quality.measure(Settings(), {"task": "countdown"}, curve, 2, puzzles=16)
    assert record.sides["ours"].seconds is None
    assert "batch_16_tokens_per_second" not in record.sides["ours"].figures


def test_answers_that_depend_on_the_batch_are_counted() -> None:
    curve = quality.CURVES[0]
    model, config = quality.built_in("cpu"), curve.config(2)
    right = evaluate(model, "sudoku", limit=5, config=config, return_completions=True)["completions"]
    answers = quality.Answers(model, "sudoku", config, [*right[:4], "another answer"])
    for turn in range(6):
        answers.decode(1, turn)
    answers.decode(2, 0)
    assert answers.agreement() == "6 of 7 answers equal those at batch 64"


@pytest.mark.parametrize(("solved", "tried"), [(0, 64), (13, 64), (64, 64), (431, 500)])
def test_interval_is_wilsons(solved: int, tried: int) -> None:
    expected = binomtest(solved, tried).proportion_ci(0.95, method="wilson")
    assert quality.wilson(solved, tried) == pytest.approx((expected.low, expected.high))
