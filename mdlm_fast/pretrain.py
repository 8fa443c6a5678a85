"""``mdlm-fast pretrain``: trains the built-in puzzle model from scratch, over as many runs as it takes."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

import torch

from .pretraining.config import PretrainConfig
from .pretraining.export import export
from .pretraining.training import train

_DESCRIPTION = """\
Trains the model behind builtin:puzzles on generated Sudoku 4x4 and three-number Countdown. The defaults are the recipe
of the weights in the package. The puzzles of the test files are never generated.

A run can be stopped at any time: the same command goes on from its last checkpoint, exactly as if it had not been
stopped. On the same machine, library versions and thread count a run gives the same weights bit for bit."""

_HELP = {
    "hidden_size": "width of the Llama body",
    "intermediate_size": "width of its MLPs",
    "num_layers": "number of layers",
    "num_heads": "attention heads",
    "countdown_batch": "Countdown examples a step",
    "sudoku_batch": "Sudoku examples a step",
    "steps": "optimiser steps in all; may be changed when resuming, until the learning rate falls",
    "warmup": "steps of learning-rate warm-up",
    "decay_share": "last share of the steps over which the learning rate falls to zero",
    "muon_lr": "peak learning rate of the body's matrices (Muon)",
    "adam_lr": "peak learning rate of embeddings, head and norms (AdamW)",
    "weight_decay": "of the body's matrices",
    "seed": "of the initial weights and of all examples",
    "bf16": "autocast to bfloat16",
    "compile": "run the body through torch.compile (needs a C++ compiler)",
}


class _Parser(argparse.ArgumentParser):
    """Its errors are one line, as those of the other commands."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"mdlm-fast: error: {message} (try --help)\n")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the description's line breaks and appends every option's default."""


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mdlm-fast pretrain",
        description=_DESCRIPTION,
        formatter_class=_Formatter,
    )
    parser.add_argument("--folder", type=Path, default=Path("puzzles-run"), help="checkpoints and metrics.jsonl")
    parser.add_argument("--export", type=Path, help="model folder written at the end; None: FOLDER/model")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--stop-after", type=int, default=None, help="end this process after so many steps")
    parser.add_argument("--checkpoint-every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--monitor-every", type=int, default=250, help="steps between accuracy checks; 0 for none")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    recipe = parser.add_argument_group("recipe")
    for field in fields(PretrainConfig):
        name = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            recipe.add_argument(
                name, action=argparse.BooleanOptionalAction, default=field.default, help=_HELP[field.name]
            )
        else:
            recipe.add_argument(name, type=type(field.default), default=field.default, help=_HELP[field.name])
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status.

    Raises:
        ValueError: a setting is out of range, or the folder holds a run with other settings.
    """
    args = _parser().parse_args(argv)
    config = PretrainConfig(**{field.name: getattr(args, field.name) for field in fields(PretrainConfig)})
    for name in ("threads", "checkpoint_every"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.folder.exists() and not args.folder.is_dir():
        raise ValueError(f"--folder {args.folder} is a file; give a folder for checkpoints and metrics")
    torch.set_num_threads(args.threads)
    try:
        run = train(
            config,
            args.folder,
            checkpoint_every=args.checkpoint_every,
            monitor_every=args.monitor_every,
            stop_after=args.stop_after,
            progress=not args.no_progress,
        )
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from the last checkpoint in {args.folder}", file=sys.stderr)
        return 130
    if run.step < config.steps:
        print(f"stopped at step {run.step} of {config.steps}; the same command goes on", file=sys.stderr)
        return 0
    print(f"model written to {export(run, args.export or args.folder / 'model')}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
