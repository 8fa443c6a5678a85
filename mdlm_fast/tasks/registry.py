"""The four tasks by name: their problems, prompts and rewards under one roof."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .countdown import countdown_chat_prompt, countdown_prompt, countdown_reward
from .gsm8k import gsm8k_prompt, gsm8k_reward
from .heldout import countdown_test_puzzles, sudoku_test_puzzles
from .math500 import math500_prompt, math500_reward
from .sudoku import sudoku_chat_prompt, sudoku_prompt, sudoku_reward

Row = dict[str, Any]
Reward = Callable[..., list[float]]


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: "sudoku", "countdown", "gsm8k" or "math500".
        columns: what a row must hold for the reward.
        reward: TRL-style reward function, called with ``prompts``, ``completions`` and the columns.
        chat_prompt: user message of a row, for instruction models.
        word_prompt: prompt of a row for the built-in puzzle model; None where that model cannot do the task.
        test_rows: the test problems that come with the package; None where a data file must be given.
        read_row: makes a row of one object of a data file.
        chat_length: tokens an instruction model's answer is given by default.
    """

    name: str
    columns: tuple[str, ...]
    reward: Reward
    chat_prompt: Callable[[Row], str]
    word_prompt: Callable[[Row], str] | None
    test_rows: Callable[[], list[Row]] | None
    read_row: Callable[[Row], Row]
    chat_length: int = 256


def _first(row: Row, *names: str) -> Any:
    """The first of several column names that a row has.

    Raises:
        KeyError: none of them is there.
    """
    for name in names:
        if name in row:
            return row[name]
    raise KeyError(" or ".join(names))


def _read_countdown(row: Row) -> Row:
    if "input" in row:
        return {"numbers": [int(n) for n in str(row["input"]).split(",")], "target": int(row["output"])}
    return {"numbers": [int(n) for n in row["numbers"]], "target": int(row["target"])}


def _read_sudoku(row: Row) -> Row:
    puzzle = str(_first(row, "puzzle", "Puzzle"))
    if len(puzzle) != 16 or not set(puzzle) <= set("01234"):
        raise ValueError(f"puzzle {puzzle!r} is not 16 digits from 0 to 4")
    return {"puzzle": puzzle}


def _read_question(row: Row) -> Row:
    return {"question": _first(row, "question", "problem"), "answer": _first(row, "answer", "ground_truth")}


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "sudoku",
            ("puzzle",),
            sudoku_reward,
            lambda row: sudoku_chat_prompt(row["puzzle"]),
            lambda row: sudoku_prompt(row["puzzle"]),
            lambda: [{"puzzle": puzzle} for puzzle in sudoku_test_puzzles()],
            _read_sudoku,
        ),
        Task(
            "countdown",
            ("numbers", "target"),
            countdown_reward,
            lambda row: countdown_chat_prompt(row["numbers"], row["target"]),
            lambda row: countdown_prompt(row["numbers"], row["target"]),
            lambda: [{"numbers": list(numbers), "target": target} for numbers, target in countdown_test_puzzles()],
            _read_countdown,
        ),
        Task("gsm8k", ("answer",), gsm8k_reward, lambda row: gsm8k_prompt(row["question"]), None, None, _read_question),
        Task(
            "math500",
            ("answer",),
            math500_reward,
            lambda row: math500_prompt(row["question"]),
            None,
            None,
            _read_question,
        ),
    )
}


def get_task(name: str) -> Task:
    """A task by name.

    Raises:
        ValueError: there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"task {name!r} is unknown; choose one of {', '.join(TASKS)}")
    return TASKS[name]


def load_rows(task: Task, data: str | Path | None = None, limit: int | None = None) -> list[Row]:
    """A task's problems: those of a JSON-lines file, else the test problems that come with the package.

    Args:
        data: path of a file with one JSON object a line. Columns: ``puzzle``; ``numbers`` and ``target`` (or
            ``input`` and ``output`` as d1 writes them); ``question`` (or ``problem``) and ``answer`` (or
            ``ground_truth``).
        limit: only the first so many.

    Raises:
        ValueError: no file was given for a task without problems of its own, a line is not usable, or no row is left.
        FileNotFoundError: the file does not exist.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if data is None:
        if task.test_rows is None:
            raise ValueError(
                f"task {task.name!r} has no problems inside the package; pass data=, a JSON-lines file with columns "
                "question (or problem) and answer"
            )
        return task.test_rows()[:limit]
    rows: list[Row] = []
    with open(data, "rb") as file:
        for number, line in enumerate(file, 1):
            if limit is not None and len(rows) == limit:
                break
            if not line.strip():
                continue
            try:
                rows.append(task.read_row(json.loads(line.decode())))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"data {str(data)!r}, line {number}: not a {task.name} problem ({error})") from error
    if not rows:
        raise ValueError(f"data {str(data)!r} holds no problem")
    return rows


def reward_columns(task: Task, rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The columns that the task's reward takes, as keyword arguments."""
    return {name: [row[name] for row in rows] for name in task.columns}
