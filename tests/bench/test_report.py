"""The report: figures derived from records, tables, the pages and the pictures, on results that no machine measured."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import linregress

from mdlm_fast.bench.harness.results import Record, Results, Side
from mdlm_fast.bench.harness.spread import Spread
from mdlm_fast.bench.report import derived, summary, tables, tables_decode, tables_kernels, wording
from mdlm_fast.bench.report.html import write_html
from mdlm_fast.bench.report.markdown import cell, markdown_table, page
from mdlm_fast.bench.report.plots import KINDS, cost, pictures
from mdlm_fast.bench.report.plots.style import ON_DARK, SYSTEMS, style
from mdlm_fast.bench.report.tables import Entry
from mdlm_fast.bench.report.terminal import show
from mdlm_fast.bench.report.views import along, centre, views

from . import synthetic

EXACT = Spread(1.0, 1.0, 1.0, 3)


def exact(seconds: float, ratio: float | None = None) -> Side:
    return Side(Spread(seconds, seconds, seconds, 3), None if ratio is None else Spread(ratio, ratio, ratio, 3))


def record(**sides: Side) -> Record:
    named = {name.replace("_", " "): side for name, side in sides.items()}
    return Record("kernels", {"op": "score_rows", "rows": 4}, named, {"bytes": 8e6, "operations": 2e7})


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
    assert [wording.storage(x) for x in (12, 6.5e7, 1.94e10)] == ["<1 MB", "65.0 MB", "19.4 GB"]
    assert [wording.percent(x) for x in (0.834, 0.0312, 0.0, 1.0)] == ["83%", "3.1%", "0%", "100%"]
    assert wording.times_range(4.433, 4.481) == "4.43–4.48" and wording.times_range(4.0, 4.0) == "4.00"
    assert wording.described({"vocab": 126_464, "dtype": "bfloat16"}).replace("\u00a0", " ") == "bf16, V = 126,464"
    assert wording.seconds_range(Spread(2e-3, 9e-4, 3e-3, 5)) == "0.900–3.00"  # in the median's unit


def test_settings_are_sorted_by_their_numbers() -> None:
    cases = [{"setting": f"steps={steps}"} for steps in (12, 2, 8)]
    assert [case["setting"] for case in sorted(cases, key=wording.case_order)] == ["steps=2", "steps=8", "steps=12"]


def test_a_captured_decode_has_a_column_and_is_no_baseline() -> None:
    found = synthetic.decode()[0]
    found.sides["ours, captured"] = exact(0.05, 0.3)
    (table,) = tables_decode.decode_tables([found])
    heads = [column.name for column in table.columns]
    assert table.rows[0][heads.index("latency, captured")].text == "50.0 ms"
    assert list(derived.baselines(found)) == ["LLaDA"]


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
    assert along(decoding[:1], "batch") == [] and along([], "batch") == []


def test_centre_of_a_full_matrix_is_the_same() -> None:
    scoring = [r for r in synthetic.kernels(full=True) if r.case.get("variant") == "T=0.7"]
    assert (centre(scoring).case["rows"], centre(scoring).case["vocab"]) == (32, 126_464)
    assert {r.case["rows"] for r in along(scoring, "vocab")} == {32}


def test_a_loss_is_said_with_its_reason_everywhere(tmp_path: Path) -> None:
    made = Results()
    run = made.start_run(synthetic.environment(synthetic.CPU, "cpu", "2026-01-02 03:04"))
    lost = record(ours=exact(2e-3), LLaDA=exact(1e-3, 0.5))
    lost.sides["LLaDA"].reason = "checks of arguments in Python."
    made.put(lost, run)
    (view,) = views(made)
    assert "slower in 1" in summary.headline(view)
    table = summary.losses(view)
    assert table is not None and table.rows[0][-1].text == "checks of arguments in Python."
    terminal = StringIO()
    show(made.records, made, Console(file=terminal, width=120))
    write_html(made, tmp_path / "index.html")
    for text in (terminal.getvalue(), page(made), (tmp_path / "index.html").read_text()):
        assert "0.50× slower" in text and "checks of arguments in Python" in text


def test_a_tie_or_win_is_no_loss_and_a_part_of_the_work_never() -> None:
    assert not tables.against(exact(1.0, 1.0)).loss
    assert tables.against(exact(1.0, 0.99)).loss
    assert not tables.against(exact(1.0, 0.4), less_work=True).loss


def test_extrapolated_sides_and_verdicts_are_marked() -> None:
    side = exact(1.0, 3.0)
    side.extrapolated_from = "1 of 64 steps"
    assert tables.against(side).text == "~3.00×"
    assert tables.against(Side(verdict="does not fit: 19.4 GB")).text == "does not fit"
    found = record(ours=exact(1.0), LLaDA=side, Dream=Side(verdict="does not fit: 19.4 GB"))
    assert tables.notes([found]) == [
        "~ extrapolated from a part of the work: LLaDA (1 of 64 steps).",
        "Dream: does not fit: 19.4 GB.",
    ]


def test_rows_of_several_commits_are_told_apart() -> None:
    old, new = record(ours=exact(1.0)), record(ours=exact(1.0))
    old.run, new.run = "Some CPU, 2 threads 2026-01-02 03:04 abc1234", "Some CPU, 2 threads 2026-02-03 04:05 def5678"
    assert tables.notes([old, new]) == ["Measured at several commits: abc1234 (1 rows), def5678 (1 rows)."]
    assert tables.notes([new, new]) == []


def test_kernel_table_against_hand_computed_row() -> None:
    found = record(ours=exact(2e-3), read=exact(1e-3, 0.5), LLaDA=exact(6e-3, 3.0))
    found.sides["ours"].peak_bytes, found.sides["LLaDA"].peak_bytes = 1_000, 2_000_000
    table = tables_kernels.op_table("score_rows", [found], 2)
    assert [column.name for column in table.columns] == ["ours", "GB/s", "of read", "peak", "LLaDA"]
    assert [entry.text for entry in table.rows[0]] == ["2.00 ms", "4.00", "50%", "<1 MB", "3.00×"]
    assert table.rows[0][-1].details == ("3.00", "2.00 MB")
    assert table.subtitle.replace("\u00a0", " ") == "N = 4"


def test_markdown_escapes_what_would_be_markup() -> None:
    assert cell(Entry("~3.0×", ("2.9–3.1",))) == r"\~3.0× (2.9–3.1)"
    assert cell(Entry("0.5×", loss=True)) == "**0.5× slower**"
    table = tables.Table("t", [tables.Column("a"), tables.Column("b", False)], [[Entry("1"), Entry("x|y")]])
    assert markdown_table(table) == "| a | b |\n|--:|---|\n| 1 | x\\|y |\n"


def test_terminal_fits_120_columns() -> None:
    made, text = synthetic.results(), StringIO()
    show(made.records, made, Console(file=text, width=120))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 120
    assert "…" not in text.getvalue()
    assert "Example GPU" not in text.getvalue()


def test_markdown_page_names_every_picture_and_machine() -> None:
    made = synthetic.results(gpu=True)
    text = page(made)
    for view in views(made):
        assert f"## {view.machine}" in text
        section = text.partition(f"## {view.machine}\n")[2].partition("\n## ")[0]
        named = re.findall(r"\(benchmarks/(.*?)\.png\)", section)
        assert sorted(picture.name for picture in pictures(view)) == sorted(named)
    cpu, _, gpu = text.partition(f"## {synthetic.GPU}\n")
    assert "say nothing about a GPU" in cpu and "say nothing about a GPU" not in gpu
    assert "\n\n\n" not in text


class Links(HTMLParser):
    """What a page loads and points to, and the ids it has."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.points: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("src", "href"):
                (self.points if tag in ("a", "use") else self.loads).append(value or "")


def test_html_page_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    made = Results()
    for machine, device, suites in ((synthetic.CPU, "cpu", ("rl",)), (synthetic.GPU, "cuda", ("kernels",))):
        run = made.start_run(synthetic.environment(machine, device, "2026-01-02 03:04"))
        for found in synthetic.results().records:
            if found.suite in suites and found.case.get("variant") in (None, "quota", "against itself"):
                made.put(found, run)
    write_html(made, tmp_path / "index.html")
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    text = (tmp_path / "index.html").read_text()
    links = Links()
    links.feed(text)
    assert links.loads == ["data:,"] and "http" not in re.sub(r"http-equiv", "", text)
    assert len(links.ids) == len(set(links.ids)), "two elements have one id"
    assert {point.removeprefix("#") for point in links.points} <= set(links.ids)
    assert set(re.findall(r"url\(#(.*?)\)", text)) <= set(links.ids)
    assert synthetic.CPU in text and synthetic.GPU in text


def test_html_escapes_what_results_say(tmp_path: Path) -> None:
    made = Results()
    run = made.start_run(synthetic.environment("<script>alert(1)</script>", "cpu", "2026-01-02 03:04"))
    made.put(record(ours=exact(1e-3)), run)
    write_html(made, tmp_path / "index.html")
    assert "<script>alert" not in (tmp_path / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__.rpartition(".")[2])
def test_pictures_are_drawn_without_text_outside(kind: object) -> None:
    (view,) = views(synthetic.results(full=kind.__name__.endswith("heat")))  # type: ignore[attr-defined]
    drawn = list(kind.pictures(view))  # type: ignore[attr-defined]
    assert drawn
    with style():
        figure = drawn[-1].draw()
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
    assert box.x0 > -0.02 and box.y0 > -0.02
    assert box.x1 < figure.get_figwidth() + 0.02 and box.y1 < figure.get_figheight() + 0.02
    assert synthetic.CPU in [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("suite", ["kernels", "decode", "quality", "rl"])
def test_one_suite_alone_and_one_record_alone(suite: str) -> None:
    made = synthetic.results()
    made.records = [r for r in made.records if r.suite == suite]
    for records in (made.records, made.records[-1:]):
        part = Results(made.runs, records)
        (view,) = views(part)
        list(pictures(view))
        show(records, part, Console(file=StringIO(), width=120))
        assert page(part).count("\n## ") == 3  # the machine, the method, reproducing


def test_sides_without_times_leave_pictures_and_tables_whole() -> None:
    made = synthetic.results()
    for found in made.records:
        for name in derived.baselines(found):
            found.sides[name] = Side(verdict="does not fit: 30 GB")
    (view,) = views(made)
    assert summary.headline(view) == "" and summary.losses(view) is None
    assert "does not fit" in page(made)
    with style():
        for picture in pictures(view):
            if picture.name.endswith(("decode-systems", "trained-head")):
                picture.draw()


def test_every_system_colour_has_a_dark_counterpart() -> None:
    assert {colour for colour, _ in SYSTEMS.values()} <= set(ON_DARK)


def test_exponents_beside_lines() -> None:
    assert cost.exponent(None) == ""
    assert cost.exponent(derived.Fit(1.0, None, 1.0, 1.0, 2.0)) == "b = 1.00"
    assert cost.exponent(derived.Fit(0.976, 0.0123, 1.0, 1.0, 2.0)) == "b = 0.98 ± 0.01"
    assert cost.exponent(derived.Fit(0.976, 0.001, 1.0, 1.0, 2.0)) == "b = 0.98 ± <0.01"
    assert cost.spaced([1_000, 32_000, 126_464, 151_936, 262_144]) == [1_000, 32_000, 262_144]
