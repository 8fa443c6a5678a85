"""diffu-GRPO, the objective of d1 (arXiv 2504.12216): one-step GRPO with random masks in the prompt.

Each pass over a rollout hides other prompt tokens, so the passes are not repetitions of one another and a rollout can
be used more often.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mdlm_fast.rl import masks
from mdlm_fast.rl.chunk import Chunk
from mdlm_fast.rl.methods.one_step import OneStepGRPOConfig, OneStepGRPOTrainer


@dataclass
class DiffuGRPOConfig(OneStepGRPOConfig):
    """Settings of diffu-GRPO beside those of `RLConfig`. See docs/rl_presets.md for what differs from the released
    code.

    Attributes:
        p_mask_prompt: probability with which each prompt token is hidden.
        mask_period: see `mdlm_fast.rl.masks.repeated`; None: every pass over a rollout has masks of its own.
    """

    p_mask_prompt: float = field(default=0.15)
    mask_period: int | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.p_mask_prompt < 1:
            raise ValueError(f"p_mask_prompt={self.p_mask_prompt} must be in [0, 1)")
        masks.check_period(self.mask_period)


class DiffuGRPOTrainer(OneStepGRPOTrainer):
    """Rows: every trained token, in the canvas whose completion is all masks and whose prompt has some. Advantage:
    reward minus the group's mean. Reduction: mean over tokens."""

    config_class = DiffuGRPOConfig
    views_differ = True
    args: DiffuGRPOConfig

    def canvas(self, chunk: Chunk, iteration: int) -> Tensor:
        number = masks.repeated(iteration, self.args.mask_period)
        u = masks.position_uniforms(chunk.seeds, chunk.attention_mask, number)
        prompt = chunk.attention_mask & ~chunk.generated
        return torch.where(prompt & (u < self.args.p_mask_prompt), chunk.trajectory.mask_id, chunk.masked_canvas)
