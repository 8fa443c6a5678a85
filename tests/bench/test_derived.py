"""Figures that follow from records, numbers in words, and the axes of results, on results that no machine measured."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import linregress

from mdlm_fast.bench.harness.results import Record, Side
from mdlm_fast.bench.harness.spread import Spread
from mdlm_fast.bench.report import derived, wording
from mdlm_fast.bench.report.views import along, centre

from . import synthetic
from .synthetic import exact, record


def test_rates_against_hand_computed_values() -> None:
    found = record(ours=exact(2e-3), read=exact(1e-3, 0.5), LLaDA=exact(6e-3, 3.0))
    found.sides[derived.ONE_THREAD] = exact(3e-3, 1.5)
    assert derived.gb_per_s(found) == pytest.approx(4.0)  # 8 MB in 2 ms
    assert derived.gflop_per_s(found) == pytest.approx(10.0)
    assert derived.gflop_per_s(found, "LLaDA") == pytest.approx(20 / 6)
    assert derived.intensity(found) == 2.5
    assert derived.share_of_read(found) == Spread(0.5, 0.5, 0.5, 3)
    assert derived.thread_scaling(found) == Spread(1.5, 1.5, 1.5, 3)
    assert derived.best_baseline(found) == ("LLaDA", Spread(3.0, 3.0, 3.0, 3))
    assert derived.geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)


def test_what_is_missing_is_none() -> None:
    found = Record("kernels", {"op": "score_rows"}, {"ours": Side(verdict="does not fit")})
    assert derived.gb_per_s(found) is None and derived.intensity(found) is None
    assert derived.share_of_read(found) is None and derived.best_baseline(found) is None


def test_floors_and_ours_again_are_no_baselines() -> None:
    names = ("ours", "ours, 1 thread", "ours again", "ours, captured", "read", "library GEMM alone", "ceiling")
    found = Record("kernels", {}, {name: exact(1.0, 0.5) for name in (*names, "library GEMM + ours", "TRL")})
    assert list(derived.baselines(found)) == ["library GEMM + ours", "TRL"]


def test_fit_is_scipys_over_what_is_bound_by_work() -> None:
    sizes = np.array([1.0, 8.0, 32.0, 128.0, 512.0])
    seconds = 1e-6 * sizes**1.3 * np.array([1.0, 1.05, 0.97, 1.02, 1.0]) + np.array([5e-5, 0, 0, 0, 0])
    found = derived.fit(sizes, seconds)
    expected = linregress(np.log(sizes[1:]), np.log(seconds[1:]))  # the first is bound by the fixed 50 us
    assert found is not None and found.first == 8 and found.last == 512
    assert found.exponent == pytest.approx(expected.slope) and found.error == pytest.approx(expected.stderr)
    assert found.scale == pytest.approx(np.exp(expected.intercept))
    assert found.seconds(32.0) == pytest.approx(np.exp(expected.intercept + expected.slope * np.log(32)))


def test_range_of_a_fit_starts_at_half_the_best_rate() -> None:
    assert derived.bound_by_work([1, 2, 4, 8], [1.0, 1.0, 1.0, 1.6]) == 2  # rates 1, 2, 4, 5
    assert derived.bound_by_work([1, 2, 4], [1.0, 4.0, 16.0]) == 0  # growing cost is no fixed cost
    assert derived.fit([1, 1000], [1.0, 1.0]) is None  # one point is left
    two = derived.fit([1, 2], [1.0, 2.0])
    assert two is not None and two.error is None and two.exponent == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [(4.6e-8, "0.0460 µs"), (1.234e-5, "12.3 µs"), (9.999e-4, "1,000 µs"), (0.0213, "21.3 ms"), (61.0, "61.0 s")],
)
def test_seconds(value: float, text: str) -> None:
    assert wording.seconds(value) == text


def test_numbers() -> None:
    assert [wording.times(x) for x in (0.616, 4.607, 9.996, 27.08, 312.4)] == [
        "0.62×",
        "4.61×",
        "10.0×",
        "27.1×",
        "312×",
    ]
    assert [wording.times(x) for x in (0.9944, 0.996, 0.9999, 1.0)] == ["0.99×", "0.996×", "0.999×", "1.00×"]
    assert [wording.storage(x) for x in (12, 6.5e7, 1.94e10)] == ["<1 MB", "65.0 MB", "19.4 GB"]
    assert [wording.percent(x) for x in (0.834, 0.0312, 0.0, 1.0)] == ["83%", "3.1%", "0%", "100%"]
    assert wording.times_range(4.433, 4.481) == "4.43–4.48" and wording.times_range(4.0, 4.0) == "4.00"
    assert wording.described({"vocab": 126_464, "dtype": "bfloat16"}).replace("\u00a0", " ") == "bf16, V = 126,464"
    assert wording.seconds_range(Spread(2e-3, 9e-4, 3e-3, 5)) == "0.900–3.00"  # in the median's unit


def test_settings_are_sorted_by_their_numbers() -> None:
    cases = [{"setting": f"steps={steps}"} for steps in (12, 2, 8)]
    assert [case["setting"] for case in sorted(cases, key=wording.case_order)] == ["steps=2", "steps=8", "steps=12"]


def test_centre_and_axes_of_a_cross() -> None:
    scoring = [r for r in synthetic.kernels() if r.case.get("variant") == "T=0.7"]
    assert centre(scoring).case | {"op": ""} == {
        "op": "",
        "variant": "T=0.7",
        "dtype": "bfloat16",
        "rows": 32,
        "vocab": 126_464,
    }
    assert [r.case["rows"] for r in along(scoring, "rows")] == list(synthetic.ROWS)
    assert {r.case["vocab"] for r in along(scoring, "rows")} == {126_464}
    decoding = [r for r in synthetic.decode() if r.case["decoder"] == "LLaDA"]
    assert [r.case["generated"] for r in along(decoding, "generated")] == [64, 128, 256]
    assert [r.case["steps"] for r in along(decoding, "generated")] == [16, 32, 64]
    training = synthetic.rl()
    assert [(r.case["generated"], r.case["steps"]) for r in along(training, "generated")] == [(32, 8), (64, 8)]
    assert [(r.case["generated"], r.case["steps"]) for r in along(training[::-1], "generated")] == [(32, 8), (64, 8)]
    assert along(decoding[:1], "batch") == [] and along([], "batch") == []


def test_centre_of_a_full_matrix_is_the_same() -> None:
    scoring = [r for r in synthetic.kernels(full=True) if r.case.get("variant") == "T=0.7"]
    assert (centre(scoring).case["rows"], centre(scoring).case["vocab"]) == (32, 126_464)
    assert {r.case["rows"] for r in along(scoring, "vocab")} == {32}
