"""The loss of a pack of views and what is watched of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mdlm_fast.rl.objectives import kl_penalty
from mdlm_fast.rl.views import View

#: (new log-probs, old log-probs, advantages), float32 [N] each, to the loss of each token.
TokenLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Watch:
    """Sums over the tokens of some packs; all tensors stay on the device until `result`."""

    epsilon_low: float
    epsilon_high: float
    sums: dict[str, Tensor] = field(default_factory=dict)
    largest: Tensor | None = None
    per_step: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def add(self, view: View, logp: Tensor, old: Tensor, entropy: Tensor, kl: Tensor | None) -> None:
        """Counts one view, unless it is one of no weight."""
        if view.step < 0:
            return
        log_ratio = logp - old
        positive = view.advantage > 0
        ratio = log_ratio.exp()
        parts = {
            "tokens": torch.ones_like(logp),
            "entropy": entropy,
            "clip_low": ((ratio < 1 - self.epsilon_low) & (view.advantage < 0)).float(),
            "clip_high": ((ratio > 1 + self.epsilon_high) & positive).float(),
            "logp_gap": log_ratio.abs(),
        }
        if kl is not None:
            parts["kl"] = kl
        for name, values in parts.items():
            total = values.sum()
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        if log_ratio.numel():
            peak = log_ratio.abs().amax()
            self.largest = peak if self.largest is None else torch.maximum(self.largest, peak)
        clipped = parts["clip_low"] + parts["clip_high"]
        self.per_step[view.step] = {
            "mean |advantage|": view.advantage.abs().mean(),
            "share clipped": clipped.mean(),
            "entropy": entropy.mean(),
            **({} if kl is None else {"KL": kl.mean()}),
        }

    def result(self) -> dict[str, float]:
        """The sums as numbers, and "logp_gap_max"."""
        found = {name: float(value) for name, value in self.sums.items()}
        return {**found, "logp_gap_max": 0.0 if self.largest is None else float(self.largest)}


def pack_loss(
    views: Sequence[View],
    logps: Sequence[Tensor],
    entropies: Sequence[Tensor],
    token_loss: TokenLoss,
    *,
    beta: float,
    kl_estimator: str,
    watch: Watch,
) -> Tensor:
    """sum over views and tokens of weight * token_loss + beta * kl_weight * KL, a scalar."""
    total: Tensor | None = None
    for view, logp, entropy in zip(views, logps, entropies, strict=True):
        old = logp.detach() if view.old_logp is None else view.old_logp
        policy = token_loss(logp, old, view.advantage)
        if view.importance is not None:
            policy = policy * view.importance
        loss = (view.weight * policy).sum()
        kl = None
        if beta and view.ref_logp is not None:
            kl = kl_penalty(logp, view.ref_logp, kl_estimator)
            loss = loss + beta * (view.kl_weight * kl).sum()
        watch.add(view, logp.detach(), old, entropy, None if kl is None else kl.detach())
        total = loss if total is None else total + loss
    assert total is not None, "a pack holds at least one view"
    return total
