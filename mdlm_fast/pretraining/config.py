"""Settings of the puzzle model's training; the defaults are the recipe of the shipped weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

_COUNTS = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "countdown_batch", "sudoku_batch", "steps")


@dataclass(frozen=True)
class PretrainConfig:
    """Model size, batch and schedule. Everything but ``steps`` must be equal for a run to be resumed.

    Attributes:
        hidden_size, intermediate_size, num_layers, num_heads: the Llama body.
        countdown_batch, sudoku_batch: examples of each task in a step.
        steps: optimiser steps in all. The learning rate is constant after ``warmup`` and falls linearly to zero over
            the last ``decay_share`` of the steps, so a run may be prolonged until that fall begins.
        muon_lr, adam_lr: peak rates for the body's matrices (Muon) and for embeddings, head and norms (AdamW).
        seed: of the initial weights and of every batch.
        bf16: autocast to bfloat16.
        compile: run the body through torch.compile (needs a C++ compiler; a fifth faster, other rounding).
    """

    hidden_size: int = 128
    intermediate_size: int = 352
    num_layers: int = 4
    num_heads: int = 4
    countdown_batch: int = 256
    sudoku_batch: int = 64
    steps: int = 1300
    warmup: int = 100
    decay_share: float = 0.2
    muon_lr: float = 0.01
    adam_lr: float = 0.002
    weight_decay: float = 0.01
    seed: int = 0
    bf16: bool = True
    compile: bool = True

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % self.num_heads or self.hidden_size // self.num_heads % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be num_heads {self.num_heads} times an even head size (RoPE)"
            )
        if not 0 <= self.decay_share <= 1:
            raise ValueError(f"decay_share must be between 0 and 1, got {self.decay_share}")

    def learning_rate_factor(self, step: int) -> float:
        """Share of the peak rate at optimiser step ``step`` (0-based): warm-up, constant, linear fall."""
        fall = max(1, round(self.steps * self.decay_share))
        return min(1.0, (step + 1) / max(1, self.warmup), (self.steps - step) / fall)

    def identity(self) -> dict[str, Any]:
        """What two runs must share for one to continue the other."""
        values = asdict(self)
        for name in ("steps", "decay_share"):
            del values[name]
        return values
