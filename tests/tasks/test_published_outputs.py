"""Parsers on real LLaDA-8B-Instruct completions: the scores of the sample are near those published for the whole sets
(GSM8K 0.77, MATH-500 0.36, Countdown 0.195, Sudoku cells 0.06)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mdlm_fast.tasks import cell_accuracy, gsm8k_reward, math500_reward
from mdlm_fast.tasks.countdown import completion_solves

OUTPUTS = Path(__file__).parent.parent / "data" / "llada_outputs"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (OUTPUTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_gsm8k() -> None:
    data = rows("gsm8k")
    rewards = gsm8k_reward([r["completion"] for r in data], answer=[r["ground_truth"] for r in data])
    assert mean(rewards) == pytest.approx(0.77, abs=0.12)


def test_math500() -> None:
    data = rows("math500")
    rewards = math500_reward([r["completion"] for r in data], answer=[r["ground_truth"] for r in data])
    assert mean(rewards) == pytest.approx(0.36, abs=0.12)


def test_countdown() -> None:
    data = rows("countdown")
    solved = [float(completion_solves(r["completion"], *r["ground_truth"])) for r in data]
    assert mean(solved) == pytest.approx(0.195, abs=0.1)


def test_sudoku() -> None:
    data = rows("sudoku")
    shares = []
    for row in data:
        puzzle = re.search(r"[0-4]{16}", row["question"])
        assert puzzle is not None
        shares.append(cell_accuracy(row["completion"], puzzle[0], row["ground_truth"]))
    assert mean(shares) == pytest.approx(0.06, abs=0.04)
