"""Sudoku 4x4, scored by validity: rows, columns and boxes hold 1 to 4 and the clues are kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .completions import answer_section, completion_text, strip_special

INSTRUCTION = (
    "Solve this 4x4 Sudoku puzzle. Every row, column and 2x2 box holds each digit from 1 to 4 once; 0 marks an empty "
    "cell. Write your reasoning between <reasoning> and </reasoning>, then the sixteen digits of the solution, row by "
    "row, between <answer> and </answer>."
)
_PROMPT = re.compile(r"sudoku\s+((?:[0-4]\s+){16}):\s*")


def sudoku_prompt(puzzle: str) -> str:
    """The prompt of the built-in model for a puzzle of 16 digits, 0 for a blank.

    Raises:
        ValueError: not 16 digits from 0 to 4.
    """
    if not re.fullmatch(r"[0-4]{16}", puzzle):
        raise ValueError(f"puzzle must be 16 digits from 0 to 4, row by row, 0 for a blank; got {puzzle!r}")
    return f"sudoku {' '.join(puzzle)} :"


def sudoku_valid(puzzle: str, grid: str) -> bool:
    """Whether a grid (16 digits) is a valid 4x4 Sudoku that keeps the puzzle's clues."""
    if not re.fullmatch(r"[1-4]{16}", grid) or len(puzzle) != 16:
        return False
    if any(clue not in ("0", cell) for clue, cell in zip(puzzle, grid, strict=True)):
        return False
    lines = [[4 * r + c for c in range(4)] for r in range(4)] + [[4 * r + c for r in range(4)] for c in range(4)]
    boxes = [[4 * (r + i) + c + j for i in range(2) for j in range(2)] for r in (0, 2) for c in (0, 2)]
    return all({grid[p] for p in unit} == set("1234") for unit in lines + boxes)


def sudoku_correct(prompt: str, completion: str) -> bool:
    """Whether the built-in model's completion solves the puzzle of its prompt (texts of space-separated words)."""
    match = _PROMPT.fullmatch(prompt.strip() + " ")
    words = completion.split()
    return match is not None and len(words) == 16 and sudoku_valid("".join(match[1].split()), "".join(words))


def sudoku_chat_prompt(puzzle: str) -> str:
    """The user message for an instruction model."""
    return f"{INSTRUCTION}\n\nSolve the following Sudoku puzzle: {puzzle}"


def parse_grid(completion: str) -> str | None:
    """The digits a completion gives as its grid, None without any: the digits of the last answer section, or all of
    a text that holds nothing but digits and white space. Neither their number nor their range is checked."""
    text = strip_special(completion)
    section = answer_section(text)
    if section is None:
        section = text if re.fullmatch(r"[0-9\s]*", text) else ""
    return "".join(re.findall(r"[0-9]", section)) or None


def completion_valid(completion: str, puzzle: str) -> bool:
    """Whether the completion's digits are a valid grid that keeps the puzzle's clues."""
    grid = parse_grid(completion)
    return grid is not None and sudoku_valid(puzzle, grid)


def cell_accuracy(completion: str, puzzle: str, solution: str) -> float:
    """Share of the puzzle's blank cells where the first sixteen digits given equal one known solution. The measure
    published for instruction models; it is too strict for puzzles with several solutions."""
    grid = (parse_grid(completion) or "").ljust(16, "0")
    blanks = [i for i, clue in enumerate(puzzle) if clue == "0"]
    return sum(grid[i] == solution[i] for i in blanks) / max(1, len(blanks))


def sudoku_reward(completions: Sequence[Any], puzzle: Sequence[str], **_: Any) -> list[float]:
    """TRL reward: 1.0 for a valid grid that keeps the clues of the ``puzzle`` column (16 digits, 0 for a blank)."""
    return [float(completion_valid(completion_text(c), p)) for c, p in zip(completions, puzzle, strict=True)]


def sudoku_cell_reward(
    completions: Sequence[Any], puzzle: Sequence[str], solution: Sequence[str], **_: Any
) -> list[float]:
    """TRL reward: share of blank cells right, see `cell_accuracy`; denser than `sudoku_reward`."""
    return [cell_accuracy(completion_text(c), p, s) for c, p, s in zip(completions, puzzle, solution, strict=True)]
