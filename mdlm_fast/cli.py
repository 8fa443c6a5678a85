"""The command line, `mdlm-fast`. Every command imports what it needs when it runs, so `--help` is quick."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdlm_fast import __version__, cli_bench, cli_train
from mdlm_fast.cli_options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    PresetOption,
    SetOption,
    parse_setting,
)

if TYPE_CHECKING:
    from mdlm_fast.config import DecodeConfig

app = typer.Typer(
    name="mdlm-fast",
    help="Fast decoding and reinforcement learning of masked diffusion language models.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"mdlm-fast {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(short_help="Watch puzzles being decoded, and compare decoders.")
def demo(
    puzzles: Annotated[int, typer.Option(help="Held-out puzzles of each kind to compare on.")] = 50,
    output: Annotated[Path, typer.Option(help="Where to write the picture of one trajectory (PNG).")] = Path(
        "mdlm-fast-demo.png"
    ),
    delay: Annotated[float, typer.Option(min=0, help="Seconds each step stays on the screen.")] = 0.15,
    json_output: JsonOption = False,
) -> None:
    """Decode held-out Sudoku and Countdown puzzles with the built-in model, live, and compare decoders.

    First one puzzle fills in step by step. Then the same puzzles are decoded by plain LLaDA decoding, EOSER, ASS,
    EOSER+ASS and RCR, and a table gives forward passes, seconds, tokens per forward pass and puzzles solved. Last, a
    picture of one trajectory (commit step and confidence of every position) is written and its path printed.
    """
    from mdlm_fast.demo import run_demo

    summary = run_demo(
        _load("builtin:puzzles", None, None), puzzles=puzzles, output=output, delay=delay, quiet=json_output
    )
    if json_output:
        typer.echo(json.dumps(summary))


@app.command(short_help="Decode prompts and print the texts.")
def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Prompts. None: one a line from standard input.", show_default=False)
    ] = None,
    model: ModelOption = "builtin:puzzles",
    preset: PresetOption = "llada",
    settings: SetOption = [],  # noqa: B006 - typer copies it
    chat: Annotated[bool, typer.Option("--chat", help="Wrap every prompt in the tokenizer's chat template.")] = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Decode prompts with a masked diffusion model and print the texts.

    \b
    mdlm-fast generate "sudoku 1 0 3 4 0 0 1 2 2 1 0 0 4 3 0 1 :" "countdown 30 100 93 to 23 :" -p eoser
    mdlm-fast generate -m ./LLaDA-8B-Instruct --chat "Why is the sky blue?" -p eoser-ass -s gen_length=128 --json
    """
    from mdlm_fast.cli_generate import decode_prompts

    if not prompts:
        try:
            prompts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
            "".join(prompts).encode()  # some locales let bytes that are no text pass until here
        except UnicodeError as error:
            raise ValueError(f"standard input is not UTF-8 text: {error}") from error
    if not prompts:
        raise ValueError("no prompt: give prompts as arguments or one a line on standard input")
    config = _config(preset, settings)
    loaded = _load(model, device, dtype)
    trained = loaded.settings.get("gen_length")  # models that were trained on answers of one length say so
    if trained is not None and not any(setting.startswith("gen_length=") for setting in settings):
        config = config.replace(gen_length=trained)
    result = decode_prompts(loaded, prompts, config, chat=chat)
    if json_output:
        typer.echo(json.dumps({"model": model, **result}))
        return
    for output in result["outputs"]:
        typer.echo(output["text"])


@app.command("eval", short_help="Solve a task's test problems.")
def evaluate(
    task: Annotated[str | None, typer.Argument(help="sudoku, countdown, gsm8k or math500.", show_default=False)] = None,
    task_option: Annotated[
        str | None, typer.Option("--task", help="The task, in place of the argument.", show_default=False)
    ] = None,
    model: ModelOption = "builtin:puzzles",
    limit: Annotated[int | None, typer.Option(help="Only the first N problems.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="JSON-lines file of problems; gsm8k and math500 need one (see mdlm_fast.tasks.load_rows)."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Problems decoded together.")] = 64,
    preset: PresetOption = "llada",
    settings: SetOption = [],  # noqa: B006 - typer copies it
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Solve a task's test problems and print the share solved.

    \b
    mdlm-fast eval sudoku --limit 100
    mdlm-fast eval gsm8k --data gsm8k.jsonl -m ./LLaDA-8B-Instruct -p eoser -s gen_length=256 -s steps=128 --json
    """
    from mdlm_fast import tasks

    name = task or task_option
    if name is None or (task is not None and task_option is not None):
        raise typer.BadParameter("give one task, as the argument or as --task: sudoku, countdown, gsm8k or math500")
    config = _config(preset, settings) if preset != "llada" or settings else None
    loaded = _load(model, device, dtype)
    result = tasks.evaluate(loaded, name, limit=limit, config=config, data=data, batch_size=batch_size)
    if json_output:
        typer.echo(json.dumps({"model": model, "preset": preset, **result}))
        return
    for name, value in result.items():
        if isinstance(value, (int, float, str)):
            typer.echo(f"{name:<20} {value:.4f}" if isinstance(value, float) else f"{name:<20} {value}")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
    short_help="Train the built-in puzzle model.",
)
def pretrain(context: typer.Context) -> None:
    """Train the built-in puzzle model from scratch (seeded, resumable). See `mdlm-fast pretrain --help`."""
    from mdlm_fast import pretrain as training

    raise typer.Exit(training.main(context.args))


app.command(short_help="Train by reinforcement learning.")(cli_train.train)
app.command(short_help="Estimate the memory of a training run.")(cli_train.estimate)
app.command(short_help="Measure speed and memory against published systems.")(cli_bench.bench)
app.command(short_help="Turn measurements into a page and pictures.")(cli_bench.report)


@app.command(short_help="Say what this installation can use.")
def doctor(json_output: JsonOption = False) -> None:
    """Say which backends this installation can use, and why not the others."""
    from mdlm_fast import doctor as checks

    found = checks.report()
    typer.echo(json.dumps(found) if json_output else "\n".join(checks.lines(found)))


def _load(model: str, device: str | None, dtype: str | None) -> Any:
    """The model with its tokenizer. Warnings are one line each, or part of the error where one follows."""
    from transformers.utils import logging

    import mdlm_fast

    logging.set_verbosity_error()  # a checkpoint that does not fit is one error, not a table in front of it
    if model.startswith("builtin:") or not sys.stderr.isatty():
        logging.disable_progress_bar()  # standard error is for errors; a large checkpoint on a terminal keeps its bar
    with warnings.catch_warnings(record=True) as caught:
        loaded = mdlm_fast.load_model(model, device=device, dtype=dtype)
    told = [" ".join(str(warning.message).split()) for warning in caught]
    if loaded.tokenizer is None:
        raise ValueError("; ".join([f"model {model!r} has no tokenizer, so it cannot read text", *told]))
    for line in told:
        print(f"mdlm-fast: warning: {line}", file=sys.stderr)
    return loaded


def _config(preset: str, settings: list[str]) -> DecodeConfig:
    """A preset with FIELD=VALUE changes; values are JSON, or plain text where they are not."""
    from dataclasses import fields

    from mdlm_fast.config import EOSER, RCR, SMC, DecodeConfig

    parts: dict[str, Any] = {"eoser": EOSER, "remasking": RCR, "smc": SMC}
    known = [field.name for field in fields(DecodeConfig)]
    overrides: dict[str, Any] = {}
    listed = f"DecodeConfig: {', '.join(known)}"
    for setting in settings:
        name, value = parse_setting(setting, listed)
        if name not in known:
            raise ValueError(f"--set {setting!r}: write FIELD=VALUE with a field of {listed}")
        if name in parts and isinstance(value, dict):
            members = [field.name for field in fields(parts[name])]
            for member in value:
                if member not in members:
                    raise ValueError(f"--set {name}: {member!r} is not one of its fields: {', '.join(members)}")
            value = parts[name](**value)
        overrides[name] = value
    return DecodeConfig.preset(preset, **overrides)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. An error is one line on standard error and a non-zero exit status.

    Returns:
        The exit status: 0, 1 for a failure, 2 for a wrong command line, 130 when interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        status = app(arguments, prog_name="mdlm-fast", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):  # newer versions of typer return 130 themselves
        return 130
    except SystemExit as exit:  # argparse, which `pretrain` uses, ends this way
        return exit.code if isinstance(exit.code, int) else 1
    except Exception as error:
        if "--debug" in arguments:
            raise
        # Errors of the command line itself (unknown option, missing argument) format themselves; which class they have
        # depends on the version of typer.
        if hasattr(error, "format_message"):
            return _fail(f"{error.format_message()} (try --help)", 2)
        message = str(error)
        if isinstance(error, OSError) and error.strerror and error.filename is not None:  # without "[Errno 2]"
            message = f"{error.filename}: {error.strerror}"
        return _fail(" ".join(message.split()) or type(error).__name__, 1)
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int) -> int:
    print(f"mdlm-fast: error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
