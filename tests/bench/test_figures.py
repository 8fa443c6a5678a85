"""Documents say what the results files say, and a document that does not is found."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.gpu_check import report as gpu_check
from bench.learning import report as learning
from mdlm_fast.bench.harness.results import Results
from mdlm_fast.bench.report import markdown as benchmarks
from mdlm_fast.bench.report.figures import __main__ as program
from mdlm_fast.bench.report.figures.markers import rewrite
from mdlm_fast.bench.report.figures.sources import BENCHMARKS, FIGURES, NotMeasured, Sources
from mdlm_fast.pretraining import report as puzzles

from . import synthetic

ROOT = Path(__file__).resolve().parents[2]


def test_documents_say_what_the_results_say() -> None:
    changed, missing = program.update(ROOT, check=True)
    assert not changed, "run `make report`"
    if (ROOT / "docs" / BENCHMARKS).exists():
        assert not missing


def read(name: str) -> Any:
    return json.loads((ROOT / "docs" / name).read_text(encoding="utf-8"))


def test_whole_pages_say_what_the_results_say() -> None:
    metrics = (ROOT / "docs" / "puzzles-metrics.jsonl").read_text(encoding="utf-8").splitlines()
    pages = {
        "puzzles.md": puzzles.document(read("puzzles.json"), [json.loads(line) for line in metrics]),
        "learning.md": learning.document(read("learning.json")),
        "gpu_check.md": gpu_check.markdown(read("gpu_check.json")),
    }
    if (ROOT / "docs" / BENCHMARKS).exists():
        pages["benchmarks.md"] = benchmarks.page(Results.load(ROOT / "docs" / BENCHMARKS))
    for name, text in pages.items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, name


def test_every_figure_is_shown() -> None:
    assert program.used(ROOT) == set(FIGURES)


#: Sides of published systems in the synthetic kernel results.
SYSTEMS = ("LLaDA", "EOSER/CJ-GRPO rollout", "Fast-dLLM", "dInfer, torch.compile", "Dream", "MDPO")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """README.md and docs/ with benchmark results that no machine measured."""
    (tmp_path / "docs").mkdir()
    for path in [*program.documents(ROOT), *(ROOT / "docs").glob("*.json")]:
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    results = synthetic.results()
    for record in list(results.select("kernels", op="token_logprobs")):
        case = record.case | {"op": "linear_token_logprobs", "hidden": 256}
        results.put(replace(record, case=case), record.run)
    results.save(tmp_path / "docs" / BENCHMARKS)
    return tmp_path


def test_writing_twice_changes_nothing_the_second_time(checkout: Path) -> None:
    assert program.main([], checkout) == 0
    assert program.update(checkout, check=True) == ([], [])
    assert program.main(["--check"], checkout) == 0
    readme = (checkout / "README.md").read_text()
    assert synthetic.CPU in readme and program.ABSENT not in readme
    assert "| `score_rows` | " in readme and "| decode, block, T" in readme


def test_a_wrong_number_is_named(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program.main([], checkout)
    kernels = checkout / "docs" / "kernels.md"
    old = kernels.read_text()
    line = old[: old.index("0.77<!--/n-->")].count("\n") + 1
    kernels.write_text(old.replace("0.77<!--/n-->", "0.97<!--/n-->").replace("| top-k | ", "| top-k | 1"))
    capsys.readouterr()
    assert program.main(["--check"], checkout) == 1
    text = capsys.readouterr().err
    assert f'docs/kernels.md:{line}: gpu-share-of-copy-bf16 says "0.97", but its results "0.77"' in text
    assert re.search(r'gpu-kernels says "\| top-k \| 1(\d+) .*", but its results "\| top-k \| \1 ', text)
    assert text.count("\n") == 2
    assert "0.97<!--/n-->" in kernels.read_text()  # only looked at
    program.main([], checkout)
    assert kernels.read_text() == old


def test_a_new_measurement_is_seen(checkout: Path) -> None:
    program.main([], checkout)
    path = checkout / "docs" / "rl_llada8b.json"
    runs: list[dict[str, Any]] = json.loads(path.read_text())
    runs[0]["seconds"] = [9.5]
    path.write_text(json.dumps(runs))
    changed, _ = program.update(checkout, check=True)
    assert len(changed) == 1 and "llada8b-iterations" in changed[0]


def test_what_no_file_has_is_said(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "docs" / BENCHMARKS).unlink()
    assert program.main([], checkout) == 0
    assert program.ABSENT in (checkout / "README.md").read_text()
    assert program.main(["--check"], checkout) == 1
    assert "README.md: bench-headline: benchmarks.json has no results of a CPU: make bench" in capsys.readouterr().err


@pytest.mark.parametrize("op", ["score_rows", "select_commit_"])
def test_headline_compares_with_the_fastest_baseline_of_each_cell(checkout: Path, op: str) -> None:
    lines = FIGURES["bench-headline"](Sources(checkout / "docs")).splitlines()
    (shown,) = [line for line in lines if line.startswith(f"| `{op}`")]
    nearest = sorted(
        min(side.ratio.median for name, side in record.sides.items() if side.ratio and name in SYSTEMS)
        for record in synthetic.kernels()
        if record.case["op"] == op and set(record.sides) & set(SYSTEMS)
    )
    won = sum(ratio > 1 for ratio in nearest)
    assert f"| {won} of {len(nearest)} | {nearest[0]:.2f}× (" in shown


def test_missing_rows_are_not_measured(checkout: Path) -> None:
    content = json.loads((checkout / "docs" / BENCHMARKS).read_text())
    content["records"] = [record for record in content["records"] if record["suite"] != "kernels"]
    (checkout / "docs" / BENCHMARKS).write_text(json.dumps(content))
    with pytest.raises(NotMeasured, match="--where op=score_rows"):
        FIGURES["bench-score-rows"](Sources(checkout / "docs"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <!--n:x-->1 b", "no partner"),
        ("1<!--/n-->", "no partner"),
        ("<!--n:X Y-->1<!--/n-->", "no partner"),
        ("<!--n:x-->1<!--/table-->", "no partner"),
        ("<!--n:lines-->1<!--/n-->", "several lines"),
    ],
)
def test_wrong_markers_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rewrite(text, lambda name: "1\n2" if name == "lines" else "1")


def test_a_figure_that_does_not_exist_is_named(checkout: Path) -> None:
    (checkout / "docs" / "rl.md").write_text("<!--n:no-such-->1<!--/n-->")
    with pytest.raises(ValueError, match=r"docs/rl\.md: there is no figure no-such; there are bench-ceilings, "):
        program.update(checkout, check=True)


def test_markers_stay_and_text_around_them_too() -> None:
    text = "a <!--n:x-->1<!--/n--> b <!--n:x-->2<!--/n-->\n<!--table:t-->\nold\n<!--/table-->\n"
    new, differences = rewrite(text, {"x": "2", "t": "| 1 |\n| 2 |\n"}.__getitem__)
    assert new == "a <!--n:x-->2<!--/n--> b <!--n:x-->2<!--/n-->\n<!--table:t-->\n| 1 |\n| 2 |\n<!--/table-->\n"
    assert [(found.line, found.old, found.new) for found in differences] == [(1, "1", "2"), (2, "old", "| 1 |\n| 2 |")]
