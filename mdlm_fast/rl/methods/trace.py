"""trace: the rollout's own steps, `shrink` at a time (TraceRL, arXiv 2509.06949, for models with full attention).

As in CJ-GRPO, tokens are predicted in states that the decoder passed through. Merging steps saves forward passes: the
tokens of several steps are predicted in the state that entered the first of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from mdlm_fast.rl import objectives
from mdlm_fast.rl.chunk import Chunk
from mdlm_fast.rl.config import RLConfig
from mdlm_fast.rl.config_checks import refuse_other
from mdlm_fast.rl.trainer import MaskedDiffusionTrainer
from mdlm_fast.rl.views import View, token_view


@dataclass
class TraceConfig(RLConfig):
    """Settings of trace beside those of `RLConfig`. See docs/rl_presets.md for what differs from the released code.

    The divergence is measured from the policy that acted, so there is no reference.

    Attributes:
        shrink: steps that are merged. With 1, old log-probs are the decoder's record; else they take a pass of their
        own. kl_reduction: of the divergence over the tokens of a (completion, group of steps): "mean", like that of the
        policy
            term, or "sum", as released, which weighs large groups more.
    """

    shrink: int = field(default=8)
    kl_reduction: str = field(default="mean")

    scale_rewards: str = field(default="group")
    beta: float = field(default=0.01)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shrink < 1:
            raise ValueError(f"shrink={self.shrink} must be at least 1")
        if self.kl_reduction not in ("mean", "sum"):
            raise ValueError(f"kl_reduction={self.kl_reduction!r}: choose 'mean' or 'sum'")
        if self.shrink > 1:
            if self.decode_config().remasking is not None:
                raise ValueError(
                    f"shrink={self.shrink} merges steps, and with remasking a step may take back what an earlier one "
                    "wrote: set shrink=1, or decode without remasking"
                )
            refuse_other(
                self,
                f"with shrink={self.shrink} log-probs are not in the states that the decoder recorded",
                importance_sampling_cap=None,
            )

    @property
    def reference_weight(self) -> float:
        return 0.0


class TraceTrainer(MaskedDiffusionTrainer):
    """Rows: the tokens of each group of steps, in the state that entered it. Advantage: z-score within the group, with
    the population's standard deviation. Reduction: mean over the tokens of a (completion, group of steps), then mean
    over those."""

    config_class = TraceConfig
    kl_to_old = True
    args: TraceConfig

    def advantages(self, rewards: Tensor, groups: Tensor, log_ratio: Tensor | None) -> Tensor:
        return objectives.group_advantages(rewards, groups, scale=self.args.scale_rewards, unbiased=False, eps=0.0)

    def views(self, chunk: Chunk, iteration: int) -> list[View]:
        steps, shrink = chunk.trajectory.steps, self.args.shrink
        trained = chunk.trained
        parts = []
        for first in range(0, steps, shrink):
            where, tokens, logp = chunk.committed(first)
            for step in range(first + 1, min(first + shrink, steps)):
                where = where | chunk.committed(step)[0]
            scored = where & trained
            parts.append((first, scored, scored.sum(1), tokens, logp if shrink == 1 else None))
        terms = sum((count > 0).sum() for _, _, count, _, _ in parts)
        total = int(chunk.total(torch.as_tensor(terms, device=trained.device)[None]))
        views = []
        for first, scored, count, tokens, logp in parts:
            of_row = torch.full(count.shape, chunk.scale / max(total, 1), device=count.device)
            mean = of_row / count.clamp(min=1)
            view = token_view(
                partial(chunk.trajectory.states, first),
                chunk.attention_mask,
                scored,
                tokens,
                weight=mean,
                kl_weight=mean if self.args.kl_reduction == "mean" else of_row,
                advantage=chunk.advantages,
                step=first,
                old_logp=logp,
            )
            if view is not None:
                views.append(view)
        return views
