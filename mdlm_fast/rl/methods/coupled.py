"""coupled-GRPO, the objective of DiffuCoder (arXiv 2506.20639): complementary masks that score every token once.

A token is predicted in two canvases: with the whole completion masked, and in the one of two complementary canvases
that hides it. The second prediction sees part of the completion, as the steps of a decoder do, and weighs 1/t, the
inverse of the share of tokens its canvas hides.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mdlm_fast.rl import masks, objectives
from mdlm_fast.rl.chunk import Chunk
from mdlm_fast.rl.config import RLConfig
from mdlm_fast.rl.config_checks import refuse_other
from mdlm_fast.rl.methods.completion import completion_view
from mdlm_fast.rl.trainer import MaskedDiffusionTrainer
from mdlm_fast.rl.views import Mix, View


@dataclass
class CoupledGRPOConfig(RLConfig):
    """Settings of coupled-GRPO beside those of `RLConfig`. See docs/rl_presets.md for what differs from the released
    code.

    Attributes:
        mask_ratio_low, mask_ratio_high: t is uniform between them, for each sequence and pass.
        coupled_ratio: "mixed": a token's ratio is that of its mixed log-prob (lp_full + w lp_other) / 2, as released;
            it is no log-prob, and its log ratio is up to 3 times a token's. "per_view": each prediction is clipped at
            its own ratio and the two losses are mixed; the gradient at ratio 1 is the same.
        mask_period: see `mdlm_fast.rl.masks.repeated`; None: every pass over a rollout has masks of its own.
    """

    mask_ratio_low: float = field(default=0.2)
    mask_ratio_high: float = field(default=0.8)
    coupled_ratio: str = field(default="mixed")
    mask_period: int | None = field(default=None)

    epsilon: float = field(default=0.5)
    beta: float = field(default=0.01)
    num_iterations: int = field(default=2)
    num_generations: int = field(default=10)

    def __post_init__(self) -> None:
        super().__post_init__()
        masks.check_ratios(self.mask_ratio_low, self.mask_ratio_high)
        if self.mask_ratio_high == 1:
            raise ValueError("mask_ratio_high=1 leaves the complement empty, whose weight is 1 / 0: set it below 1")
        masks.check_period(self.mask_period)
        if self.coupled_ratio not in ("mixed", "per_view"):
            raise ValueError(f"coupled_ratio={self.coupled_ratio!r}: choose 'mixed' or 'per_view'")
        refuse_other(self, "the advantage is the reward less the mean of the group's others", scale_rewards="none")
        refuse_other(self, masks.NOT_THE_DECODERS, importance_sampling_cap=None)


class CoupledGRPOTrainer(MaskedDiffusionTrainer):
    """Rows: every trained token in two of three canvases: all masks, M, the complement of M. Advantage: reward minus
    the mean of the group's others. Reduction: mean over tokens."""

    config_class = CoupledGRPOConfig
    views_differ = True
    args: CoupledGRPOConfig

    def advantages(self, rewards: Tensor, groups: Tensor, log_ratio: Tensor | None) -> Tensor:
        return objectives.leave_one_out_advantages(rewards, groups)

    def views(self, chunk: Chunk, iteration: int) -> list[View]:
        full = completion_view(chunk, lambda: chunk.masked_canvas)
        if full is None:
            return []
        args, trajectory = self.args, chunk.trajectory
        number = masks.repeated(iteration, args.mask_period)
        first, ratio = masks.random_masks(
            chunk.seeds, chunk.attention_mask, number, args.mask_ratio_low, args.mask_ratio_high
        )
        present = full.owner

        def canvases() -> Tensor:
            hidden = (trajectory.eligible & m for m in (torch.ones_like(first), first, ~first))
            return torch.cat([torch.where(m, trajectory.mask_id, trajectory.sequences)[present] for m in hidden])

        # The tokens' rows in the full canvas, then in that of the pair which hides them: two rows a token, not three.
        length = first.shape[1]
        in_first = first[full.sequence, full.rows.long() % length]
        weight = 1 / torch.where(in_first, ratio[full.sequence, 0], 1 - ratio[full.sequence, 0])
        canvas_size = present.shape[0] * length
        rows = torch.cat([full.rows, full.rows + torch.where(in_first, canvas_size, 2 * canvas_size)])
        coefficient = torch.cat([torch.full_like(weight, 0.5), weight / 2]).float()
        both = full.with_(
            canvas=canvases,
            attention_mask=full.attention_mask.repeat(3, 1),
            rows=rows.to(torch.int32),
            targets=full.targets.repeat(2),
            owner=present.repeat(3),
        )
        if args.coupled_ratio == "mixed":
            return [both.with_(mix=Mix(torch.arange(full.tokens, device=rows.device).repeat(2), coefficient))]
        return [
            both.with_(
                sequence=full.sequence.repeat(2),
                advantage=full.advantage.repeat(2),
                weight=full.weight.repeat(2) * coefficient,
                kl_weight=full.kl_weight.repeat(2) * coefficient,
            )
        ]
