"""Sudoku 4x4 by validity, against a brute-force count of grids."""

from __future__ import annotations

import itertools

import pytest

from mdlm_fast.tasks import (
    cell_accuracy,
    parse_grid,
    sudoku_cell_reward,
    sudoku_correct,
    sudoku_prompt,
    sudoku_reward,
    sudoku_test_puzzles,
    sudoku_valid,
)

PUZZLE, SOLUTION = "3102200002100320", "3142243142131324"


def test_of_all_row_permutations_288_grids_are_valid() -> None:
    rows = ["".join(p) for p in itertools.permutations("1234")]
    valid = sum(sudoku_valid("0" * 16, "".join(grid)) for grid in itertools.product(rows[:1], rows, rows, rows))
    assert valid * len(rows) == 288


def test_clues_must_be_kept() -> None:
    assert sudoku_valid(PUZZLE, SOLUTION)
    swapped = SOLUTION.translate(str.maketrans("12", "21"))
    assert sudoku_valid("0" * 16, swapped) and not sudoku_valid(PUZZLE, swapped)


@pytest.mark.parametrize(
    "grid", ["", "1" * 16, SOLUTION[:-1], SOLUTION + "1", SOLUTION[:-1] + "0", "\u0663" + SOLUTION[1:]]
)
def test_bad_grids(grid: str) -> None:
    assert not sudoku_valid(PUZZLE, grid)


def test_words_of_the_built_in_model() -> None:
    prompt = sudoku_prompt(PUZZLE)
    assert sudoku_correct(prompt, " ".join(SOLUTION))
    for bad in ("", SOLUTION, " ".join(SOLUTION[:-1]), " ".join(SOLUTION) + " 1", "x " * 16):
        assert not sudoku_correct(prompt, bad)
    assert not sudoku_correct("sudoku 1 2 :", " ".join(SOLUTION))


@pytest.mark.parametrize("puzzle", ["", "1" * 15, "5" * 16, "0" * 17, "0" * 15 + "\n"])
def test_prompt_refuses_what_is_no_puzzle(puzzle: str) -> None:
    with pytest.raises(ValueError, match="16 digits"):
        sudoku_prompt(puzzle)


@pytest.mark.parametrize(
    ("completion", "grid"),
    [
        (f"think 12 <answer>\n{SOLUTION}\n</answer><|eot_id|>", SOLUTION),
        ("<answer>1320\n421\n</answer>", "1320421"),
        ("1 2 3 4", "1234"),
        ("no solution 1", None),
        ("<answer>none</answer>", None),
        ("", None),
    ],
)
def test_parse_grid(completion: str, grid: str | None) -> None:
    assert parse_grid(completion) == grid


def test_rewards() -> None:
    good, bad = f"<answer>{SOLUTION}</answer>", f"<answer>{PUZZLE}</answer>"
    assert sudoku_reward(prompts=[], completions=[good, bad], puzzle=[PUZZLE] * 2) == [1.0, 0.0]
    half = "".join(c if i < 8 or p != "0" else "0" for i, (c, p) in enumerate(zip(SOLUTION, PUZZLE, strict=True)))
    blanks = [i for i, p in enumerate(PUZZLE) if p == "0"]
    expected = sum(i < 8 for i in blanks) / len(blanks)
    assert cell_accuracy(f"<answer>{half}</answer>", PUZZLE, SOLUTION) == expected
    assert sudoku_cell_reward([good, "?"], puzzle=[PUZZLE] * 2, solution=[SOLUTION] * 2) == [1.0, 0.0]


def test_the_test_file() -> None:
    puzzles = sudoku_test_puzzles()
    assert len(puzzles) == 500 and all(p.count("0") == 8 and len(p) == 16 for p in puzzles)
