"""Reporter: what a trainer's log, completion tables and pictures are made from. Keys are TRL's where TRL has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mdlm_fast.rl.losses import Watch
from mdlm_fast.rl.metrics import Metrics
from mdlm_fast.rl.processes import Processes

if TYPE_CHECKING:
    from mdlm_fast.rl.rollout import RolloutBatch


class Reporter:
    """Turns rollouts, rewards and updates into numbers of a `Metrics`.

    names: of the reward functions.
    """

    def __init__(self, metrics: Metrics, processes: Processes, names: list[str]) -> None:
        self.metrics = metrics
        self.processes = processes
        self.names = names
        self.num_tokens = 0
        self.extras: dict[str, list[Any]] = {}
        #: Per denoising step of the last rollout: mean |advantage|, share clipped, entropy and KL, of its last pass.
        self.per_step: dict[int, dict[str, Tensor]] = {}

    def log_extra(self, column: str, values: list[Any]) -> None:
        """A column that a reward function adds to the table of completions."""
        self.extras[column] = values

    def log_metric(self, name: str, value: float) -> None:
        """A number that a reward function logs."""
        self.metrics.add({name: value})

    def rollout(self, batch: RolloutBatch, mean_steps: float) -> None:
        """Lengths, forward passes and tokens of a rollout."""
        device = batch.seeds.device
        lengths = torch.tensor([len(ids) for ids in batch.completion_ids], dtype=torch.float32, device=device)
        size = batch.generated.sum(1)
        ended = torch.tensor([bool(e) for e in batch.ended], device=device)
        lengths, size, ended = (self.processes.gather(t) for t in (lengths, size, ended))
        tokens = int(lengths.sum())
        self.num_tokens += tokens
        self.metrics.count_tokens(tokens)
        self.metrics.set("num_tokens", self.num_tokens)
        terminated = lengths[ended]
        found = {
            "completions/mean_length": float(lengths.mean()),
            "completions/min_length": float(lengths.min()),
            "completions/max_length": float(lengths.max()),
            "completions/clipped_ratio": float((~ended).float().mean()),
            "rollout/forwards": float(batch.forwards),
            "rollout/steps": mean_steps,
            "rollout/tokens_per_step": float(size.float().mean()) / max(mean_steps, 1e-9),
        }
        if terminated.numel():
            found |= {
                "completions/mean_terminated_length": float(terminated.mean()),
                "completions/min_terminated_length": float(terminated.min()),
                "completions/max_terminated_length": float(terminated.max()),
            }
        self.metrics.add(found)

    def rewards(self, rewards: Tensor, combined: Tensor, groups: Tensor) -> None:
        """Means and spreads over all processes. rewards: float32 [N, F], NaN = not scored; combined: [N]."""
        for number, name in enumerate(self.names):
            scored = rewards[:, number][~rewards[:, number].isnan()]
            if scored.numel():
                self.metrics.add({f"rewards/{name}/mean": float(scored.mean())})
            if scored.numel() > 1:
                self.metrics.add({f"rewards/{name}/std": float(scored.std())})
        valid = ~combined.isnan()
        values, of = combined[valid], groups[valid]
        if not values.numel():
            return
        spreads = torch.stack([values[of == group].std(correction=0) for group in of.unique()])
        self.metrics.add(
            {
                "reward": float(values.mean()),
                "reward_std": float(spreads.mean()),
                "frac_reward_zero_std": float((spreads < 1e-8).float().mean()),
            }
        )

    def updated(self, watch: Watch, *, first_pass: bool) -> None:
        """What was seen of a micro-batch's update.

        first_pass: nothing was updated since the rollout, so recorded and new log-probs differ by rounding alone."""
        self.per_step = watch.per_step  # on the device until a picture is drawn
        sums = watch.result()
        tokens = sums.get("tokens", 0.0)
        if not tokens:  # every completion was as good as its group's mean, and nothing was scored
            return
        found = {
            "entropy": sums["entropy"] / tokens,
            "clip_ratio/low_mean": sums["clip_low"] / tokens,
            "clip_ratio/high_mean": sums["clip_high"] / tokens,
            "clip_ratio/region_mean": (sums["clip_low"] + sums["clip_high"]) / tokens,
            "log_ratio/mean_abs": sums["logp_gap"] / tokens,
        }
        if "kl" in sums:
            found["kl"] = sums["kl"] / tokens
        if first_pass:
            found["rollout/logp_gap_max"] = sums["logp_gap_max"]
        self.metrics.add(found)
