"""evaluate() on the model inside the package: what it solves of the held-out puzzles, and that order matters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mdlm_fast as mf
from mdlm_fast import tasks
from mdlm_fast.models import MaskedDiffusionModel


@pytest.fixture(scope="module")
def model() -> MaskedDiffusionModel:
    return mf.load_model("builtin:puzzles", device="cpu")


def test_held_out_sudoku(model: MaskedDiffusionModel) -> None:
    result = tasks.evaluate(model, task="sudoku", limit=40, num_blocks=1)
    assert result["accuracy"] >= 0.9 and result["problems"] == 40
    assert result["forwards"] == 24 and result["tokens_per_forward"] == 1.0 and result["seconds"] > 0


def test_order_matters_for_sudoku(model: MaskedDiffusionModel) -> None:
    random = tasks.evaluate(model, task="sudoku", limit=40, confidence="random", seed=0)
    assert random["accuracy"] <= 0.9


def test_eoser_escapes_the_eos_trap_of_countdown(model: MaskedDiffusionModel) -> None:
    plain, eoser = (tasks.evaluate(model, "countdown", limit=40, config=name) for name in ("llada", "eoser"))
    assert eoser["accuracy"] >= 0.5 and eoser["accuracy"] >= plain["accuracy"] + 0.1


def test_configs_and_batches(model: MaskedDiffusionModel) -> None:
    config = mf.DecodeConfig(steps=6)
    result = tasks.evaluate(model, "sudoku", limit=6, config=config, batch_size=4, return_completions=True)
    assert result["forwards"] == 12 and result["tokens_per_forward"] == 4.0
    assert len(result["completions"]) == 6 and result["forwards_per_answer"] == 6
    early = tasks.evaluate(model, "countdown", limit=6, config=mf.DecodeConfig(select="threshold", threshold=0.9))
    assert 1 < early["forwards_per_answer"] < early["forwards"]  # of a batch, as many as its slowest answer needs
    puzzles = tasks.sudoku_test_puzzles()[:6]
    right = [
        tasks.sudoku_correct(tasks.sudoku_prompt(puzzle), completion)
        for puzzle, completion in zip(puzzles, result["completions"], strict=True)
    ]
    assert sum(right) == result["solved"] and result["accuracy"] == result["solved"] / 6


def test_every_returned_sequence_counts(model: MaskedDiffusionModel) -> None:
    result = tasks.evaluate(model, "countdown", limit=3, steps=6, num_return_sequences=2, temperature=1.0, seed=0)
    assert result["problems"] == 3 and result["answers"] == 6 and result["accuracy"] * 6 == result["solved"]


@pytest.mark.parametrize("copies", [1, 2])
def test_draws_do_not_depend_on_the_batch_size(model: MaskedDiffusionModel, copies: int) -> None:
    settings = {"confidence": "random", "temperature": 0.7, "num_return_sequences": copies, "steps": 12, "seed": 3}
    few, all_at_once = (
        tasks.evaluate(model, "countdown", limit=5, batch_size=size, return_completions=True, **settings)
        for size in (2, 5)
    )
    assert few["completions"] == all_at_once["completions"]


def test_own_data(model: MaskedDiffusionModel, tmp_path: Path) -> None:
    path = tmp_path / "puzzles.jsonl"
    path.write_text(json.dumps({"puzzle": "3102200002100320"}) + "\n")
    assert tasks.evaluate(model, "sudoku", data=path)["accuracy"] == 1.0


def test_what_the_built_in_model_cannot_do(model: MaskedDiffusionModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pass data="):
        tasks.evaluate(model, "gsm8k")
    path = tmp_path / "data.jsonl"
    path.write_text('{"question": "1 + 1?", "answer": 2}\n')
    with pytest.raises(ValueError, match="the built-in puzzle model knows sudoku and countdown, not gsm8k"):
        tasks.evaluate(model, "gsm8k", data=path)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        tasks.evaluate(model, "sudoku", batch_size=0)
    with pytest.raises(ValueError, match="task 'chess' is unknown"):
        tasks.evaluate(model, "chess")
