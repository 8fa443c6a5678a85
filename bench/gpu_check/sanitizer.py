"""Stage: every CUDA op once on small ragged inputs, to run under compute-sanitizer."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.gpu_check import parity
from bench.gpu_check.settings import FOLDER, Settings
from bench.gpu_check.worker import Item

#: tool -> ops whose short cases run under it; racecheck is by far the slowest.
TOOLS: dict[str, tuple[str, ...]] = {
    "memcheck": tuple(op for group in parity.GROUPS for op in group),
    "racecheck": ("select_commit_", "score_rows"),
}
MOST_CASES = {"memcheck": 6, "racecheck": 2}  # per op


def find_tool() -> str | None:
    places = [shutil.which("compute-sanitizer"), "/usr/local/cuda/bin/compute-sanitizer"]
    return next((place for place in places if place and Path(place).exists()), None)


def command(tool: str) -> tuple[str, ...]:
    """In front of the worker. Only the package's kernels are checked: PyTorch's many would take minutes."""
    binary = find_tool()
    assert binary is not None
    for old in FOLDER.glob(f"{tool}.*.txt"):
        old.unlink()
    log = str(FOLDER / f"{tool}.%p.txt")
    return (binary, "--tool", tool, "--kernel-regex", "kns=mdlm_fast", "--print-limit", "20", "--log-file", log)


#: Of the worker: each tensor an allocation of its own, so that a read past its end is seen.
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "2"}


def items(settings: Settings) -> Iterator[Item]:
    counts: dict[str, int] = {}
    for item in parity.items(settings):
        op = item.name.split(": ")[1]
        counts[op] = counts.get(op, 0) + 1
        if counts[op] <= settings.options["most_cases"]:
            yield item


def errors_found(tool: str) -> dict[str, Any]:
    """From what the tool wrote: number of summaries, number of errors and the first of them."""
    logs = [*FOLDER.glob(f"{tool}.*.txt"), *FOLDER.glob(f"{tool}.log")]
    log = "\n".join(path.read_text(errors="replace") for path in logs)
    summary = re.findall(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+) (?:error|hazard)", log)
    reports = [line.lstrip("= ").strip() for line in log.splitlines() if line.startswith("=========")]
    wrong = [
        r for r in reports if re.search(r"Invalid|hazard|uninit|Program hit|out of bounds", r) and "SUMMARY" not in r
    ]
    found = {"summaries": len(summary), "errors": sum(map(int, summary)), "first": wrong[:5]}
    return found | ({"unsupported": True} if re.search(r"[Dd]evice (is )?not supported", log) else {})
