"""`mdlm-fast bench` and `mdlm-fast report`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mdlm_fast.cli_options import JsonOption

RESULTS = Path("mdlm-fast-bench.json")


def bench(
    suite: Annotated[
        list[str], typer.Option(help="kernels, decode, quality or rl; may be repeated.", show_default="all")
    ] = [],  # noqa: B006 - typer copies it
    full: Annotated[bool, typer.Option("--full", help="The whole matrix, hours, in place of the small set.")] = False,
    where: Annotated[
        list[str],
        typer.Option(metavar="FIELD=VALUE", help="Only cells with this value, e.g. op=score_rows; may be repeated."),
    ] = [],  # noqa: B006 - typer copies it
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Leave out what the results file has of this machine, commit, versions and settings."
        ),
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda where it is there.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of torch. Default: torch's choice.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="Seconds each side of a cell may take. Default: 0.2, with --full 1.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Results file, merged into.")] = RESULTS,
    json_output: JsonOption = False,
) -> None:
    """Measure this package against published systems' ways of working, side by side, and merge into a results file.

    \b
    mdlm-fast bench
    mdlm-fast bench --suite kernels --where op=score_rows --where dtype=bfloat16
    mdlm-fast report
    """
    import torch
    from rich.console import Console

    from mdlm_fast.bench.run import SUITES, run
    from mdlm_fast.bench.suites.settings import Settings

    for name in suite:
        if name not in SUITES:
            raise ValueError(f"--suite {name!r} is not one of {', '.join(SUITES)}")
    if threads is not None:
        torch.set_num_threads(threads)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device {device!r} is not cpu or cuda; CUDA_VISIBLE_DEVICES chooses among GPUs")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch sees no GPU here")
    console = Console(stderr=json_output)
    settings = Settings(device, full, seconds if seconds is not None else (1.0 if full else 0.2))
    chosen = [name for name in SUITES if name in suite or not suite]
    records, failures = run(chosen, settings, output, where=_fields(where), resume=resume, console=console)
    if json_output:
        typer.echo(json.dumps([asdict(record) for record in records]))
    else:
        console.print(f"{len(records)} results in {output}; `mdlm-fast report {output}` makes the page.", markup=False)
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(records) + len(failures)} cells failed: {'; '.join(failures)}")


def report(
    results: Annotated[Path, typer.Argument(help="Results file of `mdlm-fast bench`.")] = RESULTS,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the page (index.html) and the pictures (PNG).")
    ] = Path("mdlm-fast-report"),
    markdown: Annotated[Path | None, typer.Option(help="Also write the page as Markdown here.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Turn results into one HTML page, which needs no network, and pictures."""
    from mdlm_fast.bench.harness.results import Results
    from mdlm_fast.bench.report.html import write_html
    from mdlm_fast.bench.report.markdown import page
    from mdlm_fast.bench.report.plots import draw_all

    found = Results.load(results)
    if not found.records:
        raise ValueError(f"{results} has no results: run `mdlm-fast bench --output {results}` first")
    output.mkdir(parents=True, exist_ok=True)
    written = draw_all(found, output)
    write_html(found, output / "index.html")
    written.append(output / "index.html")
    if markdown is not None:
        markdown.write_text(page(found))
        written.append(markdown)
    paths = [str(path) for path in written]
    typer.echo(json.dumps({"written": paths}) if json_output else "\n".join(paths))


def _fields(settings: list[str]) -> dict[str, str]:
    """FIELD=VALUE pairs.

    Raises:
        ValueError: there is no '='.
    """
    for setting in settings:
        if "=" not in setting:
            raise ValueError(f"--where {setting!r}: write FIELD=VALUE, e.g. op=score_rows")
    return {name: value for name, _, value in (setting.partition("=") for setting in settings)}
