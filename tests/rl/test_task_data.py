"""Training problems of the built-in tasks: right, of the given number, and never a test problem."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mdlm_fast.rl.data import PromptSet
from mdlm_fast.rl.rewards import RewardRunner
from mdlm_fast.rl.task_data import task_dataset
from mdlm_fast.tasks import (
    countdown_test_puzzles,
    get_task,
    sudoku_cell_reward,
    sudoku_reward,
    sudoku_test_puzzles,
    sudoku_valid,
)
from mdlm_fast.tasks.vocabulary import build_tokenizer


def reachable(numbers: list[int]) -> set[int]:
    """Values of a op b op c in every order and bracketing, whole steps only, by brute force."""
    found = set()

    def results(a: int, b: int) -> list[int]:
        return [a + b, a - b, a * b] + ([a // b] if b and a % b == 0 else [])

    for a, b, c in itertools.permutations(numbers):
        for first in results(a, b):
            found.update(results(first, c), results(c, first))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_sudoku(seed: int) -> None:
    rows = task_dataset("sudoku", size=3000, seed=seed)
    assert len(rows) == 3000
    held_out = set(sudoku_test_puzzles())
    for row in rows:
        puzzle, solution = row["puzzle"], row["solution"]
        assert row["prompt"] == f"sudoku {' '.join(puzzle)} :"
        assert re.fullmatch("[0-4]{16}", puzzle) and sudoku_valid(puzzle, solution)
        assert puzzle not in held_out
    texts = [" ".join(row["solution"]) for row in rows]
    columns = {name: [row[name] for row in rows] for name in ("puzzle", "solution")}
    assert sudoku_reward(completions=texts, **columns) == [1.0] * 3000
    assert sudoku_cell_reward(completions=texts, **columns) == [1.0] * 3000


@pytest.mark.parametrize("seed", range(3))
def test_countdown(seed: int) -> None:
    rows = task_dataset("countdown", size=3000, seed=seed)
    assert len(rows) == 3000
    held_out = {(tuple(sorted(numbers)), target) for numbers, target in countdown_test_puzzles()}
    for row in rows:
        numbers, target = row["numbers"], row["target"]
        assert row["prompt"] == "countdown {} {} {} to {} :".format(*numbers, target)
        assert target in reachable(numbers)
        assert (tuple(sorted(numbers)), target) not in held_out


@pytest.mark.parametrize("task", ["sudoku", "countdown"])
def test_generated_problems_are_a_function_of_the_seed_and_fit_the_trainer(task: str) -> None:
    rows = task_dataset(task, size=40, seed=7)
    assert rows == task_dataset(task, size=40, seed=7) != task_dataset(task, size=40, seed=8)
    prompts = PromptSet(rows, build_tokenizer(), max_prompt_length=18)
    reward = get_task(task).reward
    RewardRunner(reward).check_before_training(prompts.columns)


@pytest.mark.parametrize("task", ["sudoku", "countdown"])
def test_the_test_split_is_the_held_out_problems(task: str) -> None:
    chosen = get_task(task)
    assert chosen.test_rows is not None and chosen.word_prompt is not None
    expected = [{"prompt": chosen.word_prompt(row), **row} for row in chosen.test_rows()]
    assert task_dataset(task, "test") == expected
    assert task_dataset(task, "test", 9) == expected[:9]


def test_chat_prompts() -> None:
    (row,) = task_dataset("countdown", size=1, chat=True)
    assert row["prompt"][0]["role"] == "user" and f"Target: {row['target']}" in row["prompt"][0]["content"]


def problems(path: Path) -> Path:
    lines: list[dict[str, Any]] = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("task", ["gsm8k", "math500"])
def test_problems_of_a_file(task: str, tmp_path: Path) -> None:
    rows = task_dataset(task, size=3, data=problems(tmp_path / "d.jsonl"))
    assert [row["answer"] for row in rows] == ["1", "2", "3"]
    assert all(f"What is {i} + 1?" in row["prompt"][0]["content"] for i, row in enumerate(rows))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sudoku",), "size=None: sudoku problems are generated; say how many"),
        (("countdown", "train", 0), "size=0"),
        (("sudoku", "dev", 3), "split='dev' is unknown; choose one of train, test"),
        (("chess",), "task 'chess' is unknown"),
        (("gsm8k", "train", 3), "has no problems inside the package; pass data="),
    ],
)
def test_what_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_dataset(*arguments)
