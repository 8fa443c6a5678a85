"""DMPO: fits the policy to the reward-tilted reference by a weighted denoising cross-entropy (arXiv 2510.08233).

There is no ratio and no clipping. A completion is a training example whose weight says how much likelier it is under
the target than under the policy that decoded it, and it is learned as in pretraining, from random masks. They come in
antithetic pairs: what one canvas hides the other shows, so a pair predicts every token once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from mdlm_fast.rl import masks, objectives
from mdlm_fast.rl.buffer import RolloutBuffer
from mdlm_fast.rl.chunk import Chunk
from mdlm_fast.rl.config import RLConfig
from mdlm_fast.rl.config_checks import refuse_other
from mdlm_fast.rl.trainer import MaskedDiffusionTrainer
from mdlm_fast.rl.views import View, token_view


@dataclass
class DMPOConfig(RLConfig):
    """Settings of DMPO beside those of `RLConfig`, of which it has no use for epsilon, epsilon_high, delta, beta and
    kl_estimator. See docs/rl_presets.md for what differs from the released code.

    Attributes:
        alpha: temperature of the target, in units of the reward.
        centering: baseline of the weights, see `mdlm_fast.rl.objectives.distribution_matching_advantages`.
        replicates: antithetic pairs of canvases for each completion and pass.
        mask_ratio_low, mask_ratio_high: the share that the first canvas of a pair hides is uniform between them.
        reference: the policy that the reward tilts; "none" leaves out the ratio of reference to rollout policy in the
            weights.
    """

    alpha: float = field(default=0.04)
    centering: str = field(default="negative")
    replicates: int = field(default=2)
    mask_ratio_low: float = field(default=0.1)
    mask_ratio_high: float = field(default=0.9)

    num_iterations: int = field(default=8)
    num_generations: int = field(default=16)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha > 0:
            raise ValueError(f"alpha={self.alpha} must be above 0")
        if self.centering not in ("uniform", "negative", "none"):
            raise ValueError(f"centering={self.centering!r}: choose 'uniform', 'negative' or 'none'")
        if self.replicates < 1:
            raise ValueError(f"replicates={self.replicates} must be at least 1")
        masks.check_ratios(self.mask_ratio_low, self.mask_ratio_high)
        refuse_other(
            self,
            "DMPO's loss is no ratio and has no penalty: the reference is in its weights",
            beta=0.0,
            importance_sampling_cap=None,
            scale_rewards="none",
            epsilon=0.2,
            epsilon_high=None,
            delta=None,
            kl_estimator="k3",
        )

    @property
    def reference_weight(self) -> float:
        return 0.0 if self.reference == "none" else 1.0


class DMPOTrainer(MaskedDiffusionTrainer):
    """Rows: the hidden tokens of random canvases, in complementary pairs. Advantage: softmax of reward / alpha and the
    log ratio of reference to rollout policy, less a baseline. Reduction: mean over a canvas's hidden tokens, mean over
    canvases, sum over a group (whose weights are shares of 1), mean over groups."""

    config_class = DMPOConfig
    views_differ = True
    uses_old = False
    args: DMPOConfig

    def advantages(self, rewards: Tensor, groups: Tensor, log_ratio: Tensor | None) -> Tensor:
        assert log_ratio is not None
        args = self.args
        return objectives.distribution_matching_advantages(rewards, log_ratio, groups, args.alpha, args.centering)

    def token_loss(self, logp: Tensor, old_logp: Tensor, advantage: Tensor) -> Tensor:
        return -advantage * logp

    def sequence_log_ratio(self, buffer: RolloutBuffer) -> Tensor:
        """float32 [B]: every token of the trajectory in the state in which it was committed."""
        ratio = torch.zeros(buffer.groups.shape[0], device=buffer.groups.device)
        if self.reference.kind == "none":
            return ratio
        views = _steps(self.producer.chunk(buffer, slice(None)))
        with self.metrics.phase("ref"), self.reference.scorer() as (model, module):
            reference = self.producer.log_probs(buffer, views, model, module)
        acted = [view.old_logp for view in views if view.old_logp is not None]
        if len(acted) < len(views):
            with self.metrics.phase("old"):
                acted = self.producer.log_probs(buffer, views, self.policy)
        for view, reference_logp, logp in zip(views, reference, acted, strict=True):
            ratio.index_add_(0, view.sequence, reference_logp - logp)
        return ratio

    def views(self, chunk: Chunk, iteration: int) -> list[View]:
        args, sequences = self.args, chunk.trajectory.sequences
        completions = int(chunk.total(torch.tensor([sequences.shape[0]], device=sequences.device)))
        share = chunk.scale * args.num_generations / (completions * 2 * args.replicates)
        views = []
        for pair in range(args.replicates):
            first, _ = masks.random_masks(
                chunk.seeds, chunk.attention_mask, iteration, args.mask_ratio_low, args.mask_ratio_high, pair
            )
            for hidden in (first, ~first):
                scored = hidden & chunk.trained
                view = token_view(
                    _canvas(chunk, hidden),
                    chunk.attention_mask,
                    scored,
                    sequences,
                    weight=share / scored.sum(1).clamp(min=1),
                    advantage=chunk.advantages,
                    step=0,
                )
                if view is not None:
                    views.append(view)
        return views


def _canvas(chunk: Chunk, hidden: Tensor) -> Callable[[], Tensor]:
    trajectory = chunk.trajectory
    return lambda: torch.where(trajectory.eligible & hidden, trajectory.mask_id, trajectory.sequences)


def _steps(chunk: Chunk) -> list[View]:
    """Every commit of a rollout in the state that entered its step, with the record as old log-prob."""
    views = []
    for step in range(chunk.trajectory.steps):
        where, tokens, logp = chunk.committed(step)
        view = token_view(
            partial(chunk.trajectory.states, step),
            chunk.attention_mask,
            where,
            tokens,
            weight=0.0,
            advantage=chunk.advantages,
            step=step,
            old_logp=logp,
        )
        if view is not None:
            views.append(view)
    return views
