"""One-step GRPO: every token as the model predicts it from the prompt alone.

The baseline of CJ-GRPO's release (arXiv 2509.23924): the completion's canvas is all masks, as if it had been decoded in
one step. One forward pass stands for the whole trajectory, through which the tokens were in fact drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from mdlm_fast.rl.chunk import Chunk
from mdlm_fast.rl.config import RLConfig
from mdlm_fast.rl.config_checks import refuse_other
from mdlm_fast.rl.masks import NOT_THE_DECODERS
from mdlm_fast.rl.methods.completion import completion_view
from mdlm_fast.rl.trainer import MaskedDiffusionTrainer
from mdlm_fast.rl.views import View


@dataclass
class OneStepGRPOConfig(RLConfig):
    """Settings of one-step GRPO, those of `RLConfig`. See docs/rl_presets.md for what differs from the released
    code."""

    epsilon: float = field(default=0.5)
    beta: float = field(default=0.04)
    num_iterations: int = field(default=12)
    num_generations: int = field(default=6)
    learning_rate: float = field(default=3e-6)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_other(self, NOT_THE_DECODERS, importance_sampling_cap=None)


class OneStepGRPOTrainer(MaskedDiffusionTrainer):
    """Rows: every trained token, in the canvas whose completion is all masks. Advantage: reward minus the group's mean.
    Reduction: mean over tokens."""

    config_class = OneStepGRPOConfig

    def views(self, chunk: Chunk, iteration: int) -> list[View]:
        view = completion_view(chunk, lambda: self.canvas(chunk, iteration))
        return [] if view is None else [view]

    def canvas(self, chunk: Chunk, iteration: int) -> Tensor:
        """int64 [B, L], what the model sees."""
        return chunk.masked_canvas
