"""The examples of every training step, held-out puzzles left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..tasks.heldout import countdown_test_puzzles, sudoku_test_puzzles
from .data import (
    COPY_FROM_STEP,
    COPY_PROBABILITY,
    BoolArray,
    IntArray,
    countdown_batch,
    countdown_key,
    mask_answers,
    sudoku_batch,
    sudoku_grids,
    sudoku_key,
)

if TYPE_CHECKING:
    from .config import PretrainConfig


class PuzzleData:
    """The examples of a step, a pure function of (seed, step)."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.grids = sudoku_grids()
        test = countdown_test_puzzles()
        numbers, targets = np.array([n for n, _ in test]), np.array([t for _, t in test])
        self.countdown_held_out = np.unique(countdown_key(numbers, targets))
        cells = np.array([[int(c) for c in puzzle] for puzzle in sudoku_test_puzzles()])
        self.sudoku_held_out = np.unique(sudoku_key(cells))

    def batches(self, step: int) -> list[tuple[IntArray, IntArray, BoolArray]]:
        """(prompt, answer, masked) of each task at a step: int64 [b, P], int64 [b, G], bool [b, G]."""
        rng = np.random.default_rng([self.config.seed, step])
        copies = COPY_PROBABILITY if step >= COPY_FROM_STEP else 0.0
        made = [
            countdown_batch(rng, self.config.countdown_batch, self.countdown_held_out),
            sudoku_batch(rng, self.config.sudoku_batch, self.grids, self.sudoku_held_out, copies),
        ]
        return [(prompt, answer, mask_answers(rng, len(answer))) for prompt, answer in made]
