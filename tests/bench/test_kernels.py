"""The kernel suite: windows of memory, shapes, baselines that draw what they say, checks that can fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mdlm_fast import ops
from mdlm_fast.bench.baselines import score as baselines
from mdlm_fast.bench.baselines.score import Scored
from mdlm_fast.bench.suites import kernels
from mdlm_fast.bench.suites.kernels import arena as arenas
from mdlm_fast.bench.suites.kernels import commit, finish, score
from mdlm_fast.bench.suites.kernels.agreement import Distribution, compare, compare_statistics, without_ties
from mdlm_fast.bench.suites.kernels.grid import CENTRE, Shape, centre, cross
from mdlm_fast.bench.suites.settings import Settings

QUICK = Settings(seconds=0.0)
TOY = Shape(torch.bfloat16, 4, 1000)


@pytest.fixture(autouse=True)
def small_arena(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(arenas, "size", lambda device: 2**20)
    monkeypatch.setattr(arenas, "PERIOD", 65_537)
    arenas.release()
    yield
    arenas.release()


def test_windows_follow_each_other_through_all_of_memory() -> None:
    arena = arenas.arena(torch.bfloat16, "cpu")
    windows = [arena.window(i, 3, 1001) for i in range(200)]
    starts = [window.data_ptr() for window in windows]
    step = min(b - a for a, b in pairwise(sorted(set(starts))))
    assert step >= windows[0].nbytes and len(set(starts)) == arena.buffer.nbytes // step  # apart, and all of them
    assert all(start % arenas.ALIGNMENT == starts[0] % arenas.ALIGNMENT for start in starts)
    assert all(w.shape == (3, 1001) and w.is_contiguous() for w in windows)
    assert abs(float(arena.buffer.float().std()) - arenas.SPREAD) < 0.05
    assert arenas.arena(torch.bfloat16, "cpu") is arena is not arenas.arena(torch.float32, "cpu")
    with pytest.raises(ValueError, match="two windows"):
        arena.window(0, 512, 1000)


def test_the_real_arena_holds_the_largest_window_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 2 * max(shape.nbytes for shape in cross(Settings(full=True))) <= arenas.size("cpu") <= arenas.MOST_BYTES


def test_the_small_set_is_a_cross_and_the_full_set_the_product() -> None:
    small, full = list(cross(Settings())), list(cross(Settings(full=True)))
    assert len(small) == 11 and len(full) == 75 and set(small) < set(full)
    assert list(centre(Settings())) == [CENTRE] and CENTRE in small
    assert {shape.dtype for shape in small if shape.rows != CENTRE.rows} == {CENTRE.dtype}


@pytest.mark.parametrize("full", [False, True])
def test_no_two_cells_share_a_case_and_a_dtype_comes_once(full: bool) -> None:
    cells = list(kernels.cells(Settings(full=full)))
    cases = [json.dumps(sorted(cell.case.items())) for cell in cells]
    assert len(set(cases)) == len(cases)
    dtypes = [cell.case["dtype"] for cell in cells if "rows" in cell.case]
    assert sum(a != b for a, b in pairwise(dtypes)) == 2


@pytest.mark.parametrize("variant", list(score.VARIANTS))
def test_published_decoders_agree_with_score_rows(variant: str) -> None:
    torch.manual_seed(0)
    found = score.prepared(TOY, variant, QUICK).check()
    assert found and all("in float64" in text and "in bfloat16" in text for text in found.values())


def test_a_record_has_every_side_and_how_it_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    record = score.score_cell(TOY, score.GREEDY, QUICK).measure()
    assert set(record.sides) == {"ours", "ours, 1 thread", "read", "LLaDA", "Fast-dLLM"}
    assert record.work == {"bytes": 8000.0, "operations": 16000.0, "tokens": 4.0}
    assert record.sides["LLaDA"].agreement and record.sides["LLaDA"].peak_bytes is not None
    assert all(side.seconds is not None and side.seconds.median > 0 for side in record.sides.values())
    for side in record.sides.values():
        assert side.reason is None or (side.ratio is not None and side.ratio.median < 1)


def test_halves_are_checked_against_the_whole() -> None:
    for prepare in (finish.first_half(TOY, QUICK), finish.second_half(TOY, score.SAMPLED, QUICK)):
        assert prepare.check() == {"ours": "both halves together give the bits of score_rows"}


def broken(function: Callable[[Tensor], Scored], **changes: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Scored]:
    """A baseline with one of its answers changed."""

    def call(logits: Tensor) -> Scored:
        scored = function(logits)
        return scored._replace(**{name: change(getattr(scored, name)) for name, change in changes.items()})

    return call


@pytest.mark.parametrize(
    ("variant", "system", "wrong"),
    [
        (score.GREEDY, "LLaDA", {"token": lambda t: t + 1}),
        (score.GREEDY, "Fast-dLLM", {"confidence": lambda p: p * 1.05}),
        (score.FIVE, "Dream", {"margin": lambda m: m + 0.01}),
        (score.FIVE, "Dream", {"entropy": lambda h: h * 0.95}),
        (score.SAMPLED, "LLaDA", {"confidence": lambda p: p**0.7}),
        (score.TOP_P, "Dream", {"confidence": lambda p: p * 0.9}),
    ],
)
def test_a_wrong_baseline_is_not_timed(
    variant: str, system: str, wrong: dict[str, Callable[[Tensor], Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = score.BASELINES[variant][system]
    monkeypatch.setitem(score.BASELINES[variant], system, replace(right, function=broken(right.function, **wrong)))
    with pytest.raises(AssertionError):
        score.score_cell(TOY, variant, QUICK).measure()


def test_a_token_that_a_filter_cuts_is_found() -> None:
    logits = without_ties(torch.randn(4, 1000) * 3)
    last = logits.argmin(-1)
    for filters in ({"top_k": 50}, {"top_p": 0.9}):
        ours = ops.score_rows(logits, temperature=0.7, seeds=1, **filters)  # type: ignore[arg-type]
        theirs = Scored(last, torch.zeros(4))
        with pytest.raises(AssertionError, match="a token beyond top"):
            compare(logits, ours, theirs, Distribution(0.7, True, **filters))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "sampler",
    [
        baselines.llada,
        baselines.eoser_rollout,
        baselines.fast_dllm,
        baselines.dinfer,
        baselines.dream,
        baselines.mdpo,
        baselines.race,
    ],
)
def test_samplers_draw_from_the_tempered_distribution(sampler: Callable[..., Scored]) -> None:
    torch.manual_seed(0)
    row, draws = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0]), 20_000
    counts = sampler(row.expand(draws, -1), temperature=0.7).token.bincount(minlength=5)
    assert chisquare(counts.numpy(), ((row.double() / 0.7).softmax(0) * draws).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("filters", [{"top_k": 3}, {"top_p": 0.7}])
def test_filtered_draws_stay_inside(filters: dict[str, float]) -> None:
    torch.manual_seed(0)
    row, draws = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0]), 5_000
    kept = 3 if "top_k" in filters else 2
    counts = baselines.dream(row.expand(draws, -1), temperature=1.0, **filters).token.bincount(minlength=5)  # type: ignore[arg-type]
    assert (counts[kept:] == 0).all()
    assert chisquare(counts[:kept].numpy(), (row[:kept].double().softmax(0) * draws).numpy()).pvalue > 1e-3


def test_forms_arranged_for_the_compiler_are_right_where_columns_share_the_maximum() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0], [5.0, -1.0, 2.0, 4.0]])
    ours = ops.score_rows(logits)
    for function in (baselines.likeliest, baselines.five_statistics):
        theirs = function(logits)
        assert theirs.token.tolist() == [1, 0]
        assert compare(logits, ours, theirs, Distribution()) < 1e-6
    assert compare_statistics(ours, theirs) < 1e-6


@pytest.mark.parametrize(("batch", "length"), [(1, 64), (3, 50)])
def test_loops_that_commit_and_remask_write_our_canvas(batch: int, length: int) -> None:
    assert set(commit.commit(commit.QUOTA, batch, length, QUICK).check().values()) == {"equal canvas"}
    assert set(commit.remask(batch, length, QUICK).check().values()) == {"equal canvas"}


def test_threshold_rules_write_our_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdlm_fast.bench.baselines.commit.compiled", lambda function: function)
    assert set(commit.commit(commit.THRESHOLD, 2, 40, QUICK).check().values()) == {"equal canvas"}


def test_another_canvas_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_less(canvas: Tensor, masked: Tensor, tokens: Tensor, confidence: Tensor, quota: Tensor) -> None:
        right(canvas, masked, tokens, confidence, quota - 1)

    right = commit.RULES[commit.QUOTA]["LLaDA"]
    monkeypatch.setitem(commit.RULES[commit.QUOTA], "LLaDA", one_less)
    with pytest.raises(AssertionError, match="LLaDA wrote another canvas"):
        commit.commit(commit.QUOTA, 2, 64, QUICK).check()


def test_every_call_of_ours_commits_the_same_work() -> None:
    call = commit.commit(commit.QUOTA, 2, 64, QUICK).candidates[0].call
    _, canvas, masked, start = call.args  # type: ignore[attr-defined]
    written = []
    for i in range(3):
        call(i)
        written.append((canvas.clone(), masked.clone()))
    assert masked.sum() == start.sum() - 3  # quotas 1 and 2
    assert all(torch.equal(a, b) for pair in pairwise(written) for a, b in zip(*pair, strict=True))


def test_rows_are_taken_from_both_ends() -> None:
    cpu = torch.device("cpu")
    assert score.both_ends(6, 20, cpu).tolist() == [0, 1, 2, 17, 18, 19]
    assert score.both_ends(10, 10, cpu).tolist() == list(range(10))
    assert score.both_ends(1, 20, cpu).tolist() == [0]


def test_a_wrong_last_row_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = score.ours

    def last_row_wrong(variant: str, rows: int, device: str) -> Callable[[Tensor], ops.RowScores]:
        def call(logits: Tensor) -> ops.RowScores:
            scores = right(variant, rows, device)(logits)
            scores.token[-1] = (scores.token[-1] + 1) % logits.shape[1]
            return scores

        return call

    monkeypatch.setattr(score, "ours", last_row_wrong)
    with pytest.raises(AssertionError):
        score.prepared(replace(TOY, rows=20), score.GREEDY, QUICK).check()


def test_a_part_of_the_rows_is_checked_with_the_last_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(score.MOST_TEMPORARIES, "cpu", 1000 * 18 * 8)
    shape = replace(TOY, rows=20)
    prepared = score.prepared(shape, score.GREEDY, QUICK)
    parts = {candidate.name: candidate.extrapolated_from for candidate in prepared.candidates}
    assert parts == {"ours": None, "LLaDA": None, "Fast-dLLM": "8 of 20 rows"}
    assert "8 of 8 tokens equal" in prepared.check()["Fast-dLLM"]


def test_draws_that_were_refused_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ValueError

    torch.manual_seed(0)
    assert score.NOT_DRAWN not in score.prepared(TOY, score.TOP_K, QUICK).check()["MDPO"]
    monkeypatch.setattr("mdlm_fast.bench.baselines.dream.Categorical", refuse)
    assert score.NOT_DRAWN in score.prepared(TOY, score.TOP_K, QUICK).check()["Dream"]


def test_an_autocast_widens_softmax_and_keeps_the_sort_narrow() -> None:
    torch.manual_seed(0)
    logits = (torch.randn(4, 100) * 3).bfloat16()
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append((getattr(function, "__name__", ""), args[0].dtype if isinstance(args[0], Tensor) else None))
            return function(*args, **(kwargs or {}))

    with Watch():
        scored = baselines.mdpo(logits, 0.7, top_p=0.9)
    assert ("sort", torch.bfloat16) in seen and ("softmax", torch.float32) in seen and ("cumsum", torch.float32) in seen
    assert ("softmax", torch.bfloat16) not in seen and scored.confidence.dtype == torch.float32
