"""Training problems of the built-in tasks, as data sets of prompts with the columns that their rewards take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mdlm_fast.pretraining.config import PretrainConfig
from mdlm_fast.pretraining.data import INTEGER_OFFSET, IntArray, countdown_batch, sudoku_batch
from mdlm_fast.pretraining.stream import PuzzleData
from mdlm_fast.tasks.registry import Row, get_task, load_rows

SPLITS = ("train", "test")


def task_dataset(
    task: str,
    split: str = "train",
    size: int | None = None,
    seed: int = 0,
    *,
    data: str | Path | None = None,
    chat: bool = False,
) -> list[dict[str, Any]]:
    """Problems of a task, ready for a trainer.

    Args:
        task: "sudoku", "countdown", "gsm8k" or "math500".
        split: "train": Sudoku and Countdown problems that are generated, never one of the held-out puzzles, which
            are "test". gsm8k and math500 come from `data` in both.
        size: number of problems: to generate (needed then), else the first so many.
        seed: of the generator.
        data: JSON-lines file to take the problems from instead, see `mdlm_fast.tasks.load_rows`.
        chat: prompts for an instruction model, as messages, instead of the built-in model's words; always so for tasks
            that the built-in model cannot do.

    Returns:
        Dicts with "prompt" and the columns of the task's reward; generated Sudoku also has "solution".

    Raises:
        ValueError: unknown task or split, no size, or a file that holds no usable problem.
        FileNotFoundError: `data` does not exist.
    """
    chosen = get_task(task)
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; choose one of {', '.join(SPLITS)}")
    generators = {"sudoku": _sudoku_rows, "countdown": _countdown_rows}
    rows: list[Row]
    if data is None and split == "train" and task in generators:
        if size is None or size < 1:
            raise ValueError(f"size={size!r}: {task} problems are generated; say how many, at least 1")
        rows = generators[task](np.random.default_rng(seed), size)
    else:
        rows = load_rows(chosen, data, size)
    if chat or chosen.word_prompt is None:
        return [{"prompt": [{"role": "user", "content": chosen.chat_prompt(row)}], **row} for row in rows]
    return [{"prompt": chosen.word_prompt(row), **row} for row in rows]


def _sudoku_rows(rng: np.random.Generator, size: int) -> list[Row]:
    held_out = PuzzleData(PretrainConfig())
    prompts, answers = sudoku_batch(rng, size, held_out.grids, held_out.sudoku_held_out)
    return [
        {"puzzle": _digits(prompt[1:17]), "solution": _digits(answer[:16])}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _countdown_rows(rng: np.random.Generator, size: int) -> list[Row]:
    prompts, _ = countdown_batch(rng, size, PuzzleData(PretrainConfig()).countdown_held_out)
    values = (prompts - INTEGER_OFFSET).tolist()
    return [{"numbers": value[1:4], "target": value[5]} for value in values]


def _digits(ids: IntArray) -> str:
    return "".join(map(str, (ids - INTEGER_OFFSET).tolist()))
