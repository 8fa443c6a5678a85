"""The held-out test puzzles that come with the package. Training never generates them (see `mdlm_fast.pretraining`)."""

from __future__ import annotations

import csv
import json
from pathlib import Path

DATA = Path(__file__).parent / "data"


def sudoku_test_puzzles() -> list[str]:
    """500 puzzles as 16 digits, row by row, 0 for a blank; eight blanks each. 124 of them have several solutions."""
    with open(DATA / "sudoku_4x4_test.csv", newline="", encoding="utf-8") as file:
        return [row["Puzzle"] for row in csv.DictReader(file)]


def countdown_test_puzzles() -> list[tuple[tuple[int, int, int], int]]:
    """256 pairs (three numbers, target), all solvable with all three numbers."""
    with open(DATA / "countdown_cd3_test.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    puzzles = []
    for row in rows:
        a, b, c = (int(n) for n in row["input"].split(","))
        puzzles.append(((a, b, c), int(row["output"])))
    return puzzles
