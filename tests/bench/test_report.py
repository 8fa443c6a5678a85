"""The report's tables and pages, on results that no machine measured."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from mdlm_fast.bench.harness.results import Results, Side
from mdlm_fast.bench.report import derived, summary, tables, tables_decode, tables_kernels
from mdlm_fast.bench.report.html import write_html
from mdlm_fast.bench.report.markdown import cell, markdown_table, page
from mdlm_fast.bench.report.method import method
from mdlm_fast.bench.report.plots import pictures
from mdlm_fast.bench.report.plots.style import style
from mdlm_fast.bench.report.tables import Entry
from mdlm_fast.bench.report.terminal import show
from mdlm_fast.bench.report.views import views
from mdlm_fast.bench.suites.decode import cell as decode_cell
from mdlm_fast.bench.suites.kernels import score

from . import synthetic
from .synthetic import exact, record


def test_a_captured_decode_has_a_column_and_is_no_baseline() -> None:
    found = synthetic.decode()[0]
    found.sides["ours, captured"] = exact(0.05, 0.3)
    (table,) = tables_decode.decode_tables([found])
    heads = [column.name for column in table.columns]
    assert table.rows[0][heads.index("latency, captured")].text == "50.0 ms"
    assert list(derived.baselines(found)) == ["LLaDA"]


def test_a_loss_is_said_with_its_reason_everywhere(tmp_path: Path) -> None:
    made = Results()
    run = made.start_run(synthetic.environment(synthetic.CPU, "cpu", "2026-01-02 03:04"))
    lost = record(ours=exact(2e-3), LLaDA=exact(1e-3, 0.5))
    lost.sides["LLaDA"].reason = "checks of arguments in Python."
    made.put(lost, run)
    (view,) = views(made)
    assert summary.headline(view) == (
        "In 0 of 1 cells ours is faster than every baseline; in 1 some baseline is as fast or faster."
    )
    table = summary.losses(view)
    assert table is not None and table.rows[0][-1].text == "checks of arguments in Python."
    terminal = StringIO()
    show(made.records, made, Console(file=terminal, width=120))
    write_html(made, tmp_path / "index.html")
    for text in (terminal.getvalue(), page(made), (tmp_path / "index.html").read_text()):
        assert "0.50× slower" in text and "checks of arguments in Python" in text


def test_a_cell_counts_once_by_its_fastest_baseline() -> None:
    made = Results()
    run = made.start_run(synthetic.environment(synthetic.CPU, "cpu", "2026-01-02 03:04"))
    for rows, llada, dream in ((1, 0.5, 9.0), (8, 4.0, 8.0), (64, 6.0, 2.0)):
        found = record(ours=exact(1.0), read=exact(0.1, 0.1), LLaDA=exact(llada, llada), Dream=exact(dream, dream))
        found.case |= {"rows": rows}
        made.put(found, run)
    (view,) = views(made)
    assert "In 2 of 3 cells" in summary.headline(view)
    table = summary.fastest_table(view, "kernels")
    assert table is not None
    (row,) = table.rows
    assert [entry.text for entry in row] == ["score_rows", "LLaDA", "0.50×", "1.59×", "0.50–4.00×", "LLaDA", "2 of 3"]
    each = summary.summary_table(view, "kernels")
    assert each is not None and [row[1].text for row in each.rows] == ["LLaDA", "Dream"]
    assert summary.fastest_table(view, "decode") is None


def test_the_method_says_the_limits_that_the_suites_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_cell, "LONGEST", {False: 7.25, True: 8.5})
    monkeypatch.setattr(score, "MOST_TEMPORARIES", {"cpu": 123_000_000})
    text = dict(method())["What did not run whole"]
    assert "over 7.25 s in the small set, 8.5 s in the full one" in text and "exceed 123 MB on a CPU" in text


def test_decodes_say_that_nobody_caches_keys_and_values() -> None:
    made = synthetic.results()
    made.records = [record for record in made.records if record.suite == "decode"]
    (view,) = views(made)
    tables_of = list(summary.suite_tables(view, "decode"))
    assert all(any("cached on neither side" in note for note in table.notes) for table in tables_of)
    assert sum(any("without it: Fast-dLLM." in note for note in table.notes) for table in tables_of) == 1
    shown = [one.caption for one in pictures(view) if "cost" not in one.name]
    assert shown and all("without it: Fast-dLLM; dInfer, torch.compile." in caption for caption in shown)


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
