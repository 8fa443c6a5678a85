"""Callbacks that watch a training run."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback


class Gradients(TrainerCallback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[list[Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        self.steps.append([p.grad.clone() for p in model.parameters() if p.grad is not None])


def without_times(log_history: list[dict[str, float]]) -> list[dict[str, float]]:
    """The log, without what differs between two runs of the same computation."""
    return [
        {
            name: value
            for name, value in entry.items()
            if not name.startswith(("time/", "train_")) and name not in ("step_time", "tokens_per_second", "total_flos")
        }
        for entry in log_history
    ]
