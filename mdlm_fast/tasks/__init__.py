"""Tasks with checkable answers: problems, prompts, answer parsers and rewards.

Rewards follow TRL: called with ``prompts``, ``completions`` and the data set's columns as keywords, they return a
``list[float]``. Model output is parsed, never run.
"""

from __future__ import annotations

from .arithmetic import ExpressionError, evaluate_expression
from .countdown import countdown_correct, countdown_prompt, countdown_reward, parse_expression
from .evaluation import evaluate
from .gsm8k import gsm8k_prompt, gsm8k_reward, parse_number
from .heldout import countdown_test_puzzles, sudoku_test_puzzles
from .math500 import MathVerifier, math500_prompt, math500_reward, parse_answer
from .registry import TASKS, Task, get_task, load_rows, reward_columns
from .sudoku import (
    cell_accuracy,
    parse_grid,
    sudoku_cell_reward,
    sudoku_correct,
    sudoku_prompt,
    sudoku_reward,
    sudoku_valid,
)

__all__ = [
    "TASKS",
    "ExpressionError",
    "MathVerifier",
    "Task",
    "cell_accuracy",
    "countdown_correct",
    "countdown_prompt",
    "countdown_reward",
    "countdown_test_puzzles",
    "evaluate",
    "evaluate_expression",
    "get_task",
    "gsm8k_prompt",
    "gsm8k_reward",
    "load_rows",
    "math500_prompt",
    "math500_reward",
    "parse_answer",
    "parse_expression",
    "parse_grid",
    "parse_number",
    "reward_columns",
    "sudoku_cell_reward",
    "sudoku_correct",
    "sudoku_prompt",
    "sudoku_reward",
    "sudoku_test_puzzles",
    "sudoku_valid",
]
