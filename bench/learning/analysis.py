"""Numbers of the report, from the results of finished runs. Accuracies are shares of held-out puzzles in percent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.learning.runs import BEFORE, COMPARISONS, LEARNING_RATES

Result = dict[str, Any]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """A method on a task: its runs at one learning rate, a seed each."""

    method: str
    learning_rate: str
    runs: list[Result]

    def matrix(self, part: str, quantity: str) -> Array:
        """[seeds, points], a column of "training" or "evaluation" of each run."""
        return np.array([run[part][quantity] for run in self.runs], dtype=np.float64)

    def mean(self, part: str, quantity: str) -> Array:
        """[points], its mean over the seeds."""
        return np.asarray(self.matrix(part, quantity).mean(0))

    @property
    def diverged(self) -> int:
        """Runs that stopped because they diverged."""
        return sum(bool(run["diverged"]) for run in self.runs)

    @property
    def start(self) -> Array:
        """[seeds], accuracy before training."""
        return 100 * self.matrix("evaluation", "test")[:, 0]

    @property
    def end(self) -> Array:
        """[seeds], accuracy after it."""
        return 100 * self.matrix("evaluation", "test")[:, -1]

    def at(self, axis: str, where: float) -> Array:
        """[seeds], accuracy at a number of "step" or "cpu_seconds", on straight lines between evaluations."""
        seen = [run["evaluation"] for run in self.runs]
        return np.array([np.interp(where, run[axis], 100 * np.array(run["test"])) for run in seen])

    def with_decoder(self, decoder: str, steps: str) -> Array:
        """[seeds], accuracy of the trained model with another decoder."""
        return np.array([100 * run["passes"][decoder][steps] for run in self.runs])

    @property
    def validation(self) -> float:
        """What learning rates are chosen by: validation accuracy, mean of the last two evaluations and of the seeds."""
        return float(self.matrix("evaluation", "validation")[:, -2:].mean())


def cells(results: dict[str, Result], rollouts: str, task: str) -> dict[str, list[Cell]]:
    """For every method of a comparison its cells, one a learning rate, for which there are results."""
    found: dict[str, list[Cell]] = {}
    for method in COMPARISONS[rollouts, task]:
        for rate in LEARNING_RATES:
            prefix = f"{rollouts}/{task}/{method}/{rate}/"
            runs = [results[name] for name in sorted(results) if name.startswith(prefix)]
            if runs:
                found.setdefault(method, []).append(Cell(method, rate, runs))
    return found


def chosen(results: dict[str, Result], rollouts: str, task: str) -> dict[str, Cell]:
    """For every method the cell with the best validation accuracy, of those without a diverged run; on a tie the first
    of the grid."""
    whole = {
        method: [cell for cell in of if not cell.diverged] for method, of in cells(results, rollouts, task).items()
    }
    return {method: max(of, key=lambda cell: cell.validation) for method, of in whole.items() if of}


def before(results: dict[str, Result], rollouts: str, task: str) -> Result | None:
    """The result of the model as it comes."""
    return results.get(f"{rollouts}/{task}/{BEFORE}")


def shared_end(of: Sequence[Cell], axis: str) -> float:
    """The last "step", or mean "cpu_seconds", that every method reached."""
    return min(float(cell.mean("evaluation", axis)[-1]) for cell in of)


def steps_to_reach(cell: Cell, accuracy: float) -> float | None:
    """Optimizer steps until the seeds' mean accuracy reaches `accuracy`, on straight lines between evaluations; None if
    it never does."""
    x, y = cell.mean("evaluation", "step"), 100 * cell.mean("evaluation", "test")
    for i, value in enumerate(y):
        if value >= accuracy:
            return float(x[0] if i == 0 else x[i - 1] + (accuracy - y[i - 1]) / (value - y[i - 1]) * (x[i] - x[i - 1]))
    return None
