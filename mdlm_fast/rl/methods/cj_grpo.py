"""CJ-GRPO: consistency of the trained steps with the decoded ones (arXiv 2509.23924).

Every step of the rollout is a view: the canvas that entered the step, and the tokens the step committed. Training so
sees the states that decoding passes through, not one masked canvas that stands for them all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch

from mdlm_fast.rl.chunk import Chunk
from mdlm_fast.rl.config import RLConfig
from mdlm_fast.rl.trainer import MaskedDiffusionTrainer
from mdlm_fast.rl.views import View, token_view


@dataclass
class CJGRPOConfig(RLConfig):
    """Settings of CJ-GRPO. See docs/rl.md for what differs from the released code (preset "cj-grpo-paper")."""

    epsilon: float = field(default=0.5)
    beta: float = field(default=0.04)
    num_iterations: int = field(default=8)
    num_generations: int = field(default=6)
    learning_rate: float = field(default=3e-6)


class CJGRPOTrainer(MaskedDiffusionTrainer):
    """Rows: every step's commits in the state that entered it. Advantage: reward minus the group's mean.

    Reduction: mean over the tokens of a step, then mean over the steps, so a step that commits one token weighs as much
    as one that commits many."""

    config_class = CJGRPOConfig

    def views(self, chunk: Chunk, iteration: int) -> list[View]:
        trained = chunk.trained
        steps = [chunk.committed(step) for step in range(chunk.trajectory.steps)]
        counts = chunk.total(torch.stack([(where & trained).sum() for where, _, _ in steps])).tolist()
        divisor = max(sum(count > 0 for count in counts), 1)
        views = []
        for step, (where, tokens, logp) in enumerate(steps):
            view = token_view(
                partial(chunk.trajectory.states, step),
                chunk.attention_mask,
                where & trained,
                tokens,
                weight=chunk.scale / (max(counts[step], 1) * divisor),
                advantage=chunk.advantages,
                step=step,
                old_logp=logp,
            )
            if view is not None:
                views.append(view)
        return views
