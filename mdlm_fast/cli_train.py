"""`mdlm-fast train` and `mdlm-fast estimate`: recipes from the command line."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdlm_fast.cli_options import DtypeOption, JsonOption, parse_setting

if TYPE_CHECKING:
    from mdlm_fast.rl.recipe import Recipe

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file with preset, model, task, lora, data, args, ... (see recipes/)."),
]
MethodOption = Annotated[
    str | None,
    typer.Option("--preset", "-p", help="Method: cj-grpo, mdpo, d1, ..., or as released: cj-grpo-paper, ..."),
]
TrainedModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="builtin:puzzles (default), a checkpoint directory, or a hub id.")
]
TaskOption = Annotated[str | None, typer.Option(help="sudoku (default), countdown, gsm8k or math500.")]
LoraOption = Annotated[
    str | None,
    typer.Option(help="none, all, attention, mlp or paper. Default: the preset's; for builtin:puzzles none."),
]
FieldOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        "-s",
        metavar="FIELD=VALUE",
        help="Any field of the method's config, e.g. -s learning_rate=3e-5 or -s max_steps=100. May be repeated.",
    ),
]
ProcessesOption = Annotated[
    int | None, typer.Option(min=1, help="Processes to plan for. Default: as launched, or as the recipe says.")
]
MemoryOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Memory of a device, e.g. 80GB: says what fits.")
]


def train(
    config: ConfigOption = None,
    preset: MethodOption = None,
    model: TrainedModelOption = None,
    task: TaskOption = None,
    settings: FieldOption = [],  # noqa: B006 - typer copies it
    lora: LoraOption = None,
    data: Annotated[Path | None, typer.Option(help="JSON-lines file of training problems; gsm8k needs one.")] = None,
    eval_data: Annotated[Path | None, typer.Option(help="JSON-lines file of held-out problems.")] = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="Training problems to generate or take.")] = None,
    eval_prompts: Annotated[int | None, typer.Option(min=1, help="Held-out problems to take. Default: all.")] = None,
    dtype: DtypeOption = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Checkpoints, log and model. Default: runs/PRESET-TASK.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last whole checkpoint.")] = False,
    evaluate: Annotated[bool, typer.Option("--eval/--no-eval", help="Measure accuracy before and after.")] = True,
    eval_every: Annotated[int | None, typer.Option(min=1, help="And every so many optimizer steps.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; load and train nothing.")] = False,
    processes: ProcessesOption = None,
    memory: MemoryOption = None,
    json_output: JsonOption = False,
) -> None:
    """Train a masked diffusion model by reinforcement learning.

    \b
    mdlm-fast train --preset cj-grpo --model builtin:puzzles --task sudoku
    mdlm-fast train -c recipes/llada-8b/cj-grpo-1gpu-lora.yaml --data gsm8k.jsonl -s learning_rate=1e-5
    accelerate launch --num_processes 2 -m mdlm_fast.cli train -p mdpo --task countdown

    The command line wins over the YAML file, which wins over the preset. Presets are for models of 8 billion
    parameters; for builtin:puzzles a run is 24 optimizer steps of 8 prompts with 8 completions each, at learning rate
    5e-5, all weights trained: about a minute on one core. Answers are decoded in 4 passes, by EOSER+ASS where the
    preset decodes token by token. -s changes any of it. --processes and --memory are for --dry-run.
    """
    _quiet()
    recipe = _recipe(
        config,
        preset=preset,
        model=model,
        task=task,
        lora=lora,
        data=_text(data),
        eval_data=_text(eval_data),
        prompts=prompts,
        eval_prompts=eval_prompts,
        dtype=dtype,
        args=_args(settings),
    )
    if dry_run:
        _show_plan(recipe, processes, memory, json_output)
        return
    folder = output_dir or Path("runs") / f"{recipe.preset}-{recipe.task}"
    from mdlm_fast.rl.run import run

    result = run(recipe, folder, resume=resume, evaluate=evaluate, eval_every=eval_every, progress=not json_output)
    if not _main_process():
        return
    typer.echo(json.dumps(result) if json_output else _summary(result))


def estimate(
    config: ConfigOption = None,
    preset: MethodOption = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="llada-8b, dream-7b, a hub id, a checkpoint directory, or builtin:puzzles."),
    ] = None,
    task: TaskOption = None,
    settings: FieldOption = [],  # noqa: B006 - typer copies it
    lora: LoraOption = None,
    dtype: DtypeOption = None,
    prompt_length: Annotated[
        int | None, typer.Option(min=0, help="Tokens of a prompt. Default: the config's max_prompt_length, or 256.")
    ] = None,
    processes: ProcessesOption = None,
    memory: MemoryOption = None,
    json_output: JsonOption = False,
) -> None:
    """Estimate the memory of a training run on each device, and what the released trainers' way would keep.

    \b
    mdlm-fast estimate --model llada-8b --preset cj-grpo --memory 80GB
    mdlm-fast estimate -c recipes/llada-8b/cj-grpo-8gpu-fsdp2.yaml --json
    """
    _quiet()
    recipe = _recipe(config, preset=preset, model=model, task=task, lora=lora, dtype=dtype, args=_args(settings))
    from mdlm_fast.rl.plan import Plan

    plan = Plan.of(recipe, processes, prompt_length)
    size = None if memory is None else parse_size(memory)
    if json_output:
        typer.echo(json.dumps({**plan.memory.as_dict(), **_fit(plan, size)}))
    else:
        _print_memory(plan, size)


def parse_size(text: str) -> int:
    """Bytes from a size such as 80GB, 24 GiB or 1.5e9.

    Raises:
        ValueError: it is none."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"--memory {text!r} is no size; write e.g. 80GB or 24GiB")
    power = " KMGT".index(match[2].upper() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def _recipe(config: Path | None, **changes: Any) -> Recipe:
    """The recipe; of several processes, which all read the same, the main one says what is wrong with it."""
    from mdlm_fast.rl.recipe import Recipe

    try:
        recipe = Recipe.read(config, **changes)
        recipe.config_values()
        recipe.adapter()
    except (ValueError, OSError):
        if _main_process():
            raise
        sys.exit(1)
    return recipe


def _main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _args(settings: list[str]) -> dict[str, Any]:
    return dict(parse_setting(setting, "the method's config") for setting in settings)


def _quiet() -> None:
    """What libraries say on the way is not for users of a command."""
    from transformers.utils import logging

    warnings.simplefilter("ignore", FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _show_plan(recipe: Recipe, processes: int | None, memory: str | None, json_output: bool) -> None:
    from mdlm_fast.rl.plan import Plan

    plan = Plan.of(recipe, processes)
    size = None if memory is None else parse_size(memory)
    if json_output:
        typer.echo(json.dumps({**plan.as_dict(), **_fit(plan, size)}))
        return
    for line in plan.lines():
        typer.echo(line)
    _print_memory(plan, size)


def _fit(plan: Any, size: int | None) -> dict[str, Any]:
    if size is None:
        return {}
    return {"fits": plan.memory.total <= size, "views_that_fit": plan.memory.largest_pack(size)}


def _print_memory(plan: Any, size: int | None) -> None:
    from rich.console import Console

    Console(width=100, highlight=False).print(plan.memory.table(size))
    if size is not None and plan.memory.total > size:
        typer.echo(
            f"does not fit {size / 1e9:.1f} GB: train an adapter (--lora), lower per_device_train_batch_size or "
            "max_completion_length, set activation_checkpointing, or shard over more processes"
        )


def _summary(result: dict[str, Any]) -> str:
    before, after = result["accuracy_before"], result["accuracy_after"]
    accuracy = "" if before is None else f"accuracy {100 * before:.1f}% -> {100 * after:.1f}% on held-out problems; "
    where = result["model_dir"] or result["adapter_dir"]
    return (
        f"{result['preset']} on {result['task']}: {accuracy}{result['optimizer_steps']} optimizer steps in "
        f"{result['seconds']:.0f} s; model in {where}"
    )
