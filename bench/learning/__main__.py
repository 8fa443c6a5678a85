"""The command: lists the runs, makes them, writes the report."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

import bench.learning
from bench.learning import report
from bench.learning.run import FOLDER, ROOT, finished
from bench.learning.runs import Run, select_runs

CONSOLE = Console()
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def list_runs(runs: Sequence[Run], folder: Path) -> None:
    """A table of the runs and of what became of them."""
    table = Table("run", "optimizer steps", "held-out, before", "after", "seconds of training")
    for run in runs:
        result = finished(run, folder)
        cells = ["", "", ""]
        if result is not None:
            seen = result["evaluation"]
            cells = [f"{100 * seen['test'][0]:.1f}%", f"{100 * seen['test'][-1]:.1f}%", f"{seen['seconds'][-1]:.0f}"]
        elif (folder / run.id).exists():
            cells[0] = "begun"
        table.add_row(run.id, str(run.steps), *cells)
    CONSOLE.print(table)


def make_runs(runs: Sequence[Run], folder: Path, workers: int) -> int:
    """Makes what is not finished, each in a process of one thread; returns the number of failures.

    Processes that are stopped, with this one or alone, go on from their checkpoints the next time."""
    missing = [run for run in runs if finished(run, folder) is None]
    CONSOLE.print(f"{len(runs) - len(missing)} of {len(runs)} runs are finished")

    def make(run: Run) -> bool:
        output = folder / "output" / f"{run.id.replace('/', '-')}.txt"
        output.parent.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        command = [sys.executable, "-m", "bench.learning.run", run.id, "--folder", str(folder)]
        with open(output, "w", encoding="utf-8") as out:
            done = subprocess.run(command, cwd=ROOT, env={**os.environ, **ONE_THREAD}, stdout=out, stderr=out)
        seconds = time.perf_counter() - began
        if done.returncode:
            last = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
            CONSOLE.print(f"[red]failed[/] {run.id} ({output}):", *last, sep="\n  ")
            return False
        CONSOLE.print(f"{run.id}: {seconds:.0f} s")
        return True

    with ThreadPoolExecutor(workers) as pool:
        failures = list(pool.map(make, missing)).count(False)
    if failures:
        CONSOLE.print(f"[red]{failures} of {len(missing)} runs failed[/]")
    return failures


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.learning",
        description=bench.learning.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where results go (%(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the runs, finished or not")
    make = commands.add_parser("run", help="make what is not finished; begun runs go on where they stopped")
    which = make.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="all runs")
    which.add_argument("--only", nargs="+", default=[], metavar="RUN", help="runs whose id is, or begins with, this")
    make.add_argument("--workers", type=int, default=1, help="runs at a time, a thread each (%(default)s)")
    commands.add_parser("report", help="docs/learning.md, its pictures and docs/learning.json from finished runs")
    options = parser.parse_args(argv)
    if options.command == "list":
        list_runs(select_runs(), options.folder)
        return 0
    if options.command == "report":
        for path in report.write(options.folder):
            CONSOLE.print(f"wrote {path}")
        return 0
    try:
        runs = select_runs(options.only)
    except ValueError as error:
        parser.error(str(error))
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, got {options.workers}")
    return 1 if make_runs(runs, options.folder, options.workers) else 0


if __name__ == "__main__":
    sys.exit(main())
