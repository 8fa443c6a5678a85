"""Prompts to train on, and the share of puzzles that a model solves."""

from __future__ import annotations

from typing import Any

import mdlm_fast as mf
from bench.learning.runs import LENGTH, ROLLOUTS, TRAINING_PROMPTS, VALIDATION_PROMPTS, Run
from mdlm_fast.config import DecodeConfig
from mdlm_fast.models import MaskedDiffusionModel
from mdlm_fast.rl.rollout import evaluating
from mdlm_fast.rl.task_data import task_dataset
from mdlm_fast.tasks import get_task

BATCH = 512
#: Validation puzzles are the same in every run.
VALIDATION_SEED = 10**6

Rows = list[dict[str, Any]]


def prompts(task: str, seed: int, training: int = TRAINING_PROMPTS) -> tuple[Rows, Rows]:
    """(training, validation): generated, without a prompt in common, and without the held-out puzzles."""
    validation = task_dataset(task, "train", VALIDATION_PROMPTS, seed=VALIDATION_SEED)
    kept = {row["prompt"] for row in validation}
    rows = task_dataset(task, "train", training + VALIDATION_PROMPTS, seed=seed)
    return [row for row in rows if row["prompt"] not in kept][:training], validation


def solved(model: MaskedDiffusionModel, task: str, rows: Rows, config: DecodeConfig) -> float:
    """Share of the rows that the model solves."""
    chosen = get_task(task)
    answers: list[str] = []
    with evaluating(model.model):
        for first in range(0, len(rows), BATCH):
            texts = [row["prompt"] for row in rows[first : first + BATCH]]
            inputs = model.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
            answers += mf.generate(model, inputs.input_ids, inputs.attention_mask, config).text or []
    columns = {name: [row[name] for row in rows] for name in chosen.columns}
    return sum(chosen.reward(prompts=None, completions=answers, **columns)) / len(rows)


def accuracy_by_passes(run: Run, model: MaskedDiffusionModel, rows: Rows) -> dict[str, dict[str, float]]:
    """For each decoder of the run's rollouts, number of steps (as text, as JSON has it) -> share of the rows solved."""
    found: dict[str, dict[str, float]] = {}
    for label, (preset, steps) in ROLLOUTS[run.rollouts].decoders.items():
        for count in steps:
            config = DecodeConfig.preset(preset, gen_length=LENGTH, steps=count, temperature=0.0, record="none")
            found.setdefault(label, {})[str(count)] = round(solved(model, run.task, rows, config), 4)
    return found
