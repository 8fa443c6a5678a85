"""`mdlm-fast bench` and `report`: what is measured, kept, resumed and said."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from mdlm_fast.bench import run as program
from mdlm_fast.bench.harness.results import Record, Results, Side
from mdlm_fast.bench.harness.spread import Spread
from mdlm_fast.bench.suites.settings import Cell, Settings
from mdlm_fast.cli import main

HERE = {"machine": "a CPU", "commit": "abc1234", "packages": {"torch": "2"}, "date": "today", "cores": 2, "load": 0.1}


class Suite(ModuleType):
    """Cells rows = 1, 2, 3; the second fails when told so. Counts what was measured."""

    def __init__(self) -> None:
        super().__init__("mdlm_fast.bench.suites.kernels")
        self.measured: list[int] = []
        self.broken = False

    def cells(self, settings: Settings) -> Iterator[Cell]:
        for rows in (1, 2, 3):
            yield Cell("kernels", {"op": "score_rows", "rows": rows}, lambda rows=rows: self.measure(rows))  # type: ignore[misc]

    def measure(self, rows: int) -> Record:
        if self.broken and rows == 2:
            raise AssertionError("LLaDA gave another token in row 1")
        self.measured.append(rows)
        return Record("kernels", {"op": "score_rows", "rows": rows}, {"ours": Side(Spread.of([rows / 1e3]))})


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Suite:
    fake = Suite()
    monkeypatch.setitem(sys.modules, "mdlm_fast.bench.suites.kernels", fake)
    monkeypatch.setattr(program, "show", lambda *arguments: None)
    monkeypatch.setattr(program, "environment", lambda device: dict(HERE))
    return fake


def run(path: Path, **options: object) -> tuple[list[Record], list[str], str]:
    text = StringIO()
    records, failures = program.run(["kernels"], Settings(), path, console=Console(file=text, width=200), **options)  # type: ignore[arg-type]
    return records, failures, text.getvalue()


def test_every_result_is_on_disk_and_a_failing_cell_ends_alone(suite: Suite, tmp_path: Path) -> None:
    suite.broken = True
    records, failures, text = run(tmp_path / "results.json")
    assert [record.case["rows"] for record in records] == [1, 3] == suite.measured
    assert failures == ["kernels op score_rows, rows 2: AssertionError: LLaDA gave another token in row 1"]
    assert failures[0] in text
    stored = Results.load(tmp_path / "results.json")
    assert sorted(record.case["rows"] for record in stored.records) == [1, 3]
    assert len(stored.runs) == 1


def test_resume_measures_only_what_is_not_there(suite: Suite, tmp_path: Path) -> None:
    suite.broken = True
    run(tmp_path / "results.json")
    suite.broken, suite.measured = False, []
    run(tmp_path / "results.json", resume=True)
    assert suite.measured == [2]
    run(tmp_path / "results.json")
    assert suite.measured == [2, 1, 2, 3]
    assert len(Results.load(tmp_path / "results.json").records) == 3


def test_resume_asks_for_the_same_commit_versions_and_settings(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "results.json")
    for change in ({"commit": "def5678"}, {"packages": {"torch": "3"}}, {"machine": "another"}):
        suite.measured = []
        monkeypatch.setattr(program, "environment", lambda device, change=change: {**HERE, **change})
        run(tmp_path / "results.json", resume=True)
        assert suite.measured == [1, 2, 3], change
    monkeypatch.setattr(program, "environment", lambda device: {**HERE, "commit": "abc1234-dirty"})
    with pytest.raises(ValueError, match="files were changed since abc1234"):
        run(tmp_path / "results.json", resume=True)


def test_a_cell_that_fails_leaves_no_older_record(suite: Suite, tmp_path: Path) -> None:
    run(tmp_path / "results.json")
    suite.broken = True
    run(tmp_path / "results.json", where={"rows": "2"})
    assert sorted(record.case["rows"] for record in Results.load(tmp_path / "results.json").records) == [1, 3]


def test_where_chooses_cells(suite: Suite, tmp_path: Path) -> None:
    run(tmp_path / "results.json", where={"rows": "3"})
    assert suite.measured == [3]
    with pytest.raises(ValueError, match="no cell of kernels has rows=4"):
        run(tmp_path / "results.json", where={"rows": "4"})


def test_command_line(suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    assert main(["bench", "--suite", "kernels", "--where", "rows=2", "--json", "-o", str(path)]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["case"] == {"op": "score_rows", "rows": 2} and record["sides"]["ours"]["seconds"]["median"] == 2e-3
    suite.broken = True
    assert main(["bench", "--suite", "kernels", "-o", str(path)]) == 1
    assert "1 of 3 cells failed: kernels op score_rows, rows 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--suite", "kernel"], "--suite 'kernel' is not one of kernels, decode, quality, rl"),
        (["bench", "--suite", "kernels", "--where", "rows"], "--where 'rows': write FIELD=VALUE"),
        (["bench", "--device", "cuda:1"], "--device 'cuda:1' is not cpu or cuda"),
        (["report", "absent.json"], "absent.json has no results: run `mdlm-fast bench --output absent.json` first"),
        (["report", "foreign.json"], "foreign.json is not a file that `mdlm-fast bench` wrote"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    suite: Suite,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("foreign.json").write_text("{}")
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
