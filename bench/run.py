"""Runs suites cell by cell; every result is on disk before the next cell begins."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .harness.machine import environment
from .harness.results import Record, Results
from .report.terminal import show
from .suites.settings import Cell, Settings

SUITES = ("kernels", "decode", "quality", "rl")
#: What two runs have in common if one may go on where the other stopped.
SAME = ("machine", "commit", "packages", "full", "seconds")


def run(
    suites: Sequence[str],
    settings: Settings,
    path: Path,
    *,
    where: Mapping[str, str] = {},
    resume: bool = False,
    console: Console,
) -> tuple[list[Record], list[str]]:
    """Measures cells and merges their records into a results file.

    Args:
        suites: names, of SUITES.
        path: the results file; created or merged into.
        where: only cells whose case has these values, compared as text.
        resume: leave out cells that the file has from this machine, commit, versions and settings.
        console: for progress and tables.

    Returns:
        the records measured, and for every cell that failed a line that says which and why. A failure (a baseline that
        disagrees, memory that ran out) ends its cell alone.

    Raises:
        ValueError: no cell has these values, `resume` where files were changed since the commit, a suite needs a
            package that is not there, or `path` is not a results file.
    """
    results = Results.load(path)
    here = environment(settings.device) | {"full": settings.full, "seconds": settings.seconds}
    name = results.start_run(here)
    if here["load"] > 0.5 * here["cores"]:
        console.print(f"The machine is busy (load {here['load']} on {here['cores']} cores): expect wide quartiles.")
    if resume and here["commit"].endswith("-dirty"):
        raise ValueError(f"--resume needs to know the commit, but files were changed since {here['commit'][:-6]}")
    done = measured_before(results, here) if resume else set()
    cells = {suite: list(chosen(suite, settings, where)) for suite in suites}
    if not any(cells.values()):
        raise ValueError(f"no cell of {', '.join(suites)} has {', '.join(f'{k}={v}' for k, v in where.items())}")
    records: list[Record] = []
    failures: list[str] = []
    for suite, suite_cells in cells.items():
        found = []
        for cell in with_progress(suite, [c for c in suite_cells if case_key(c.suite, c.case) not in done], console):
            gc.collect()
            try:
                record = cell.measure()
            except Exception as error:
                results.drop(cell.suite, cell.case, name)  # what was measured before no longer agrees
                results.save(path)
                failures.append(f"{suite} {describe(cell.case)}: {type(error).__name__}: {error}")
                console.print(failures[-1], style="red", markup=False)
                continue
            results.put(record, name)
            results.save(path)
            found.append(record)
        if found:
            show(found, results, console)
        records += found
    return records, failures


def chosen(suite: str, settings: Settings, where: Mapping[str, str]) -> Iterator[Cell]:
    """The cells of a suite whose case has these values.

    Raises:
        ValueError: the suite needs a package that is not installed.
    """
    try:
        module = import_module(f".suites.{suite}", __package__)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("mdlm_fast", "bench"):
            raise
        raise ValueError(f"suite {suite} needs {error.name}: pip install 'mdlm-fast[rl,bench]'") from error
    for cell in module.cells(settings):
        if all(str(cell.case.get(field)) == value for field, value in where.items()):
            yield cell


def case_key(suite: str, case: Mapping[str, object]) -> tuple[object, ...]:
    return suite, *sorted((name, str(value)) for name, value in case.items())


def measured_before(results: Results, here: Mapping[str, object]) -> set[tuple[object, ...]]:
    """Cells that the results have from such a run."""
    return {
        case_key(record.suite, record.case)
        for record in results.records
        if all(results.runs[record.run][name] == here[name] for name in SAME)
    }


def describe(case: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in case.items())


def with_progress(suite: str, cells: Sequence[Cell], console: Console) -> Iterator[Cell]:
    """The cells, with a bar that names the one being measured; one line each where there is no terminal. The bar stands
    still during a measurement."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    width = max(20, (console.width or os.get_terminal_size().columns) - 50)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal, auto_refresh=False
    ) as progress:
        task = progress.add_task(suite, total=len(cells))
        for number, cell in enumerate(cells, 1):
            text = f"{suite}: {describe(cell.case)}"
            progress.update(task, description=text[:width], refresh=True)
            if not console.is_terminal:
                console.print(f"[{number}/{len(cells)}] {text}", markup=False, highlight=False)
            yield cell
            progress.advance(task)
