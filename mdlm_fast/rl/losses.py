"""The loss of a pack of views and what is watched of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from mdlm_fast.rl.objectives import kl_penalty
from mdlm_fast.rl.views import View

#: (new log-probs, old log-probs, advantages), float32 [N] each, to the loss of each token.
TokenLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


class TrainingDiverged(RuntimeError):
    """A loss is not a number, or a policy moved too far from the one that acted. Nothing was updated."""


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
        """Counts one view."""
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


def check_finite(
    views: Sequence[View], logps: Sequence[Tensor], max_log_ratio: float, *, optimizer_step: int, prompts: Tensor
) -> None:
    """Raises TrainingDiverged where a log-prob is NaN or a ratio exploded, naming the first such token.

    logps: detached, a view each. prompts: int64 [B], the prompt number of each sequence of the chunk."""
    bad = [~(_log_ratio(view, logp).abs() <= max_log_ratio) for view, logp in zip(views, logps, strict=True)]
    if not bad or not bool(torch.cat(bad).any()):
        return
    for view, logp, wrong in zip(views, logps, bad, strict=True):
        if not bool(wrong.any()):
            continue
        token = int(wrong.nonzero()[0])
        value, ratio = float(logp[token]), float(_log_ratio(view, logp)[token])
        sequence = int(view.sequence[token])
        if not math.isfinite(value):
            cause = f"its new log-prob is {value}: the weights or activations are no longer finite"
        elif view.old_logp is not None and not bool(torch.isfinite(view.old_logp[token])):
            cause = f"its log-prob under the policy that acted is {float(view.old_logp[token])}"
        elif view.ref_logp is not None and not bool(torch.isfinite(view.ref_logp[token])):
            cause = f"its log-prob under the reference is {float(view.ref_logp[token])}"
        else:
            cause = f"its log ratio of new to old policy is {ratio:.3g} (log-prob {value:.4g})"
        raise TrainingDiverged(
            f"optimizer step {optimizer_step}, denoising step {view.step}, sequence {sequence} (prompt "
            f"{int(prompts[sequence])}), token {token} of its view: {cause}, and max_log_ratio={max_log_ratio:g}. The "
            "update was not made; lower learning_rate, num_iterations or max_grad_norm, or go on from a checkpoint"
        )


def check_gradients(model: nn.Module, *, optimizer_step: int) -> None:
    """Raises TrainingDiverged where a gradient is NaN or infinite although the loss was not, naming the parameter.

    model: with the gradients of all micro-batches, reduced over processes."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norm = get_total_norm(gradients.values())
    if math.isfinite(norm.full_tensor() if isinstance(norm, DTensor) else norm):
        return
    wrong = [name for name, gradient in gradients.items() if not bool(torch.isfinite(gradient).all())]
    what = f"the gradient of {wrong[0]} (and of {len(wrong) - 1} others)" if wrong else "the norm of the gradient"
    raise TrainingDiverged(
        f"optimizer step {optimizer_step}: {what} is not finite, although the loss is. The update was not made; lower "
        "learning_rate or num_iterations, or go on from a checkpoint"
    )


def _log_ratio(view: View, logp: Tensor) -> Tensor:
    """New minus old; 0 where there is no old, NaN where anything is."""
    difference = logp - (logp if view.old_logp is None else view.old_logp)
    return difference if view.ref_logp is None else difference + 0 * view.ref_logp
