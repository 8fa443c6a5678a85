"""The GPU check without a GPU: a dry run, workers that go wrong, and what the reports make of results."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.gpu_check import build, parity, report
from bench.gpu_check.__main__ import Check, main
from bench.gpu_check.sanitizer import errors_found
from bench.gpu_check.settings import Settings, torch_version
from bench.gpu_check.supervise import supervise
from bench.gpu_check.worker import Item, run_items


def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "gpu_check.json").read_text())
    assert set(results["stages"]) == {"machine", "build", "parity", "sanitizer", "graph", "bench"}
    assert {row["op"] for row in results["bench"]["results"].values()} == {
        "score_rows",
        "linear_score_rows",
        "token_logprobs",
        "linear_token_logprobs",
        "select_commit_",
    }
    assert len(results["graph"]["results"]) == 5
    printed = capsys.readouterr().out
    assert "no failures" in printed and "score_rows" in printed
    table = (tmp_path / "gpu_check.md").read_text()
    assert "| op | backend | dtype |" in table and "against PyTorch" in table


def test_only_some_stages(tmp_path: Path) -> None:
    assert main(["--dry-run", "--only", "graph", "--out", str(tmp_path)]) == 0
    assert set(json.loads((tmp_path / "gpu_check.json").read_text())["stages"]) == {"graph"}


def test_a_worker_that_dies_is_replaced_behind_that_item() -> None:
    outcome = supervise("parity.faulty_stage", Settings(device="cpu"), label="faulty", patience=60.0)
    assert {name: result["value"] for name, result in outcome.results.items()} == {"first": 1, "between": 2, "last": 3}
    assert outcome.errors["raises"] == "RuntimeError: refused"
    assert outcome.errors["dies"] == "the process ended with status 9: last words"


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced_behind_that_item() -> None:
    settings = Settings(device="cpu", options={"hang": True})
    outcome = supervise("parity.faulty_stage", settings, label="faulty", patience=15.0)
    assert set(outcome.results) == {"first", "between", "last"}
    assert "hung" in outcome.errors["hangs"]


def test_a_worker_that_cannot_start_is_reported() -> None:
    outcome = supervise("no.such.stage", Settings(device="cpu"), label="absent", patience=60.0)
    assert list(outcome.errors) == ["absent"] and "No module named" in outcome.errors["absent"]


def test_items_not_begun_in_time_are_counted() -> None:
    events: list[dict[str, Any]] = []
    assert run_items("parity.faulty_stage", Settings(device="cpu", seconds=-1.0), events.append)
    assert events == [{"left_out": 5}]
    assert isinstance(Item("x", dict).run(), dict)


def test_failures_of_every_stage_are_reported() -> None:
    results: dict[str, Any] = {
        "stage_errors": {"machine": "RuntimeError: x"},
        "build": {"errors": {"a.cu": "error: b\nmore"}},
        "parity": {
            "results": {"cuda: score_rows: n, bfloat16": {"failures": ["logp: error 1, allowed 0"]}},
            "errors": {"triton: select_commit_: quota, large, float32": "RuntimeError: y"},
        },
        "graph": {"results": {"cuda: quota": {"differing": 3, "committed": 9}}, "errors": {}},
        "bench": {"results": {"cuda: score_rows": {"not_captured": "z"}}, "errors": {"triton: w": "OSError: w"}},
        "sanitizer": {"memcheck": {"errors": 2, "first": ["Invalid read"], "worker_errors": {}, "summaries": 1}},
    }
    assert len(report.failures(results)) == 8
    row = parity.table({}, results["parity"]["errors"])[0]
    assert (row["op"], row["backend"], row["dtype"], row["failed"]) == ("select_commit_", "triton", "float32", 1)


def test_the_sanitizer_stage_reads_what_the_tool_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(
        "#!/bin/sh\n"
        'while [ "$1" != --log-file ]; do shift; done\n'
        'echo "========= ERROR SUMMARY: 3 errors" > "$(echo "$2" | sed s/%p/1/)"\n'
        'shift 2; exec "$@"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setattr("bench.gpu_check.sanitizer.find_tool", lambda: str(tool))
    check = Check(Namespace(quick=False, dry_run=False, backend=None, out=tmp_path))
    check.settings = replace(check.settings, device="cpu")
    check.sanitizer(60.0)
    assert {name: found["errors"] for name, found in check.results["sanitizer"].items()} == {
        "memcheck": 3,
        "racecheck": 3,
    }


def test_summaries_of_the_sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.gpu_check.sanitizer.FOLDER", tmp_path)
    (tmp_path / "memcheck.1.txt").write_text(
        "========= COMPUTE-SANITIZER\n"
        "========= Invalid __global__ read of size 4 bytes\n"
        "========= ERROR SUMMARY: 1 error\n"
    )
    found = errors_found("memcheck")
    assert found == {"summaries": 1, "errors": 1, "first": ["Invalid __global__ read of size 4 bytes"]}


def compiler_stub(path: Path, log: Path, fails_on: str) -> None:
    """Writes what follows -o and notes its arguments."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"""#!/bin/sh
echo "$@" >> {log}
case "$*" in *{fails_on}*) echo "{fails_on}(1): error: planted" >&2; exit 1;; esac
while [ $# -gt 0 ]; do [ "$1" = -o ] && touch "$2"; shift; done
"""
    )
    path.chmod(0o755)


def test_a_source_that_does_not_compile_costs_its_own_op(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "FOLDER", tmp_path / "built")
    monkeypatch.setattr(build, "LIBRARY", tmp_path / "built" / "lib.so")
    compiler_stub(tmp_path / "bin" / "nvcc", tmp_path / "nvcc.log", "token_logprobs.cu")
    compiler_stub(tmp_path / "cxx", tmp_path / "cxx.log", "never")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "cxx"))
    errors = build._library("90a", (2, 11), time.monotonic() + 60)
    assert errors == {"token_logprobs.cu": "token_logprobs.cu(1): error: planted"}
    assert "sm_90a" in (tmp_path / "nvcc.log").read_text()
    *compiled, linked = (tmp_path / "cxx.log").read_text().splitlines()
    assert any("TORCH_TARGET_VERSION=0x020b000000000000" in line for line in compiled)
    assert "select_commit.cu." in linked and "select_commit.cpp." in linked and "-ltorch_cuda" in linked
    assert "token_logprobs" not in linked
    before = len((tmp_path / "nvcc.log").read_text().splitlines())
    build._library("90a", (2, 11), time.monotonic() + 60)
    assert len((tmp_path / "nvcc.log").read_text().splitlines()) == before + 1  # only what failed is compiled again


def test_versions_of_torch() -> None:
    assert torch_version("2.11.0+cu130") == (2, 11) < torch_version("2.13.0+cpu")
