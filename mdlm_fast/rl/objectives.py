"""The objectives of the trainers as pure functions on tensors: losses, KL penalties, importance weights, advantages.

The functions on log-probabilities work token by token, float32 or float64 of any one shape, and are differentiable in
``logp`` alone: old, reference and recorded log-probabilities, and advantages, are data. They know nothing of masks and
means: whoever calls them multiplies each token by its weight and sums. The advantages are in `mdlm_fast.rl.advantages`.

Nothing is clamped except where a formula says so. In float32, exp overflows at a log-ratio above 88.7: a ratio that far
off is an error of the run, and an infinite loss shows it where a clamp would hide it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mdlm_fast.rl.advantages import (
    combine_rewards,
    distribution_matching_advantages,
    group_advantages,
    leave_one_out_advantages,
    normalize_steps,
    rank_steps,
    step_advantages,
)

__all__ = [
    "clipped_policy_loss",
    "combine_rewards",
    "distribution_matching_advantages",
    "group_advantages",
    "importance_ratio",
    "kl_penalty",
    "leave_one_out_advantages",
    "normalize_steps",
    "rank_steps",
    "step_advantages",
    "truncated_importance_weight",
    "until_first_eos",
]


def importance_ratio(logp: Tensor, old_logp: Tensor) -> Tensor:
    """rho = exp(logp - old_logp), how much likelier a token is now than when it was drawn.

    Args:
        logp: float32 or float64, any shape, in nats.
        old_logp: the same shape; no gradient flows into it.

    Returns:
        The same shape; d rho / d logp = rho. inf above a log-ratio of 88.7 in float32 (709.7 in float64).

    Raises:
        ValueError: shapes differ.
    """
    _check_same("importance_ratio", logp=logp, old_logp=old_logp)
    return (logp - old_logp.detach()).exp()


def clipped_policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    epsilon_low: float,
    epsilon_high: float,
    delta: float | None = None,
) -> Tensor:
    """PPO's clipped objective (arXiv 1707.06347) of each token, as a loss: the lower, the better.

        loss = -min(min(rho, delta) A, clip(rho, 1 - epsilon_low, 1 + epsilon_high) A),   rho = exp(logp - old_logp)

    The minimum stops the gradient once a token has moved far enough in the direction its advantage asks for:

    - A > 0: loss = -min(rho, 1 + epsilon_high) A. Gradient in logp: -rho A below the bound, 0 above it.
    - A < 0: loss = |A| max(rho, 1 - epsilon_low). Gradient: rho |A| above the bound, 0 below it. rho, and with it the
      gradient, has no upper bound here unless ``delta`` sets one (two-sided clipping, INTELLECT-2, arXiv 2505.07291).

    At rho = 1 the gradient is -A, that of the policy gradient. An epsilon_high above epsilon_low leaves unlikely tokens
    more room to grow (DAPO, arXiv 2503.14476). Names and meaning are those of TRL's GRPOConfig.

    Args:
        logp: float32 or float64, any shape, in nats.
        old_logp, advantage: the same shape; no gradient flows into them.
        epsilon_low, epsilon_high: >= 0.
        delta: > 1 + epsilon_high, upper bound of the ratio where A < 0; None = no bound.

    Returns:
        The same shape. Where rho overflows, the loss is inf for A < 0 (without delta) and NaN for A = 0, and
        the gradient is NaN whatever the sign.

    Raises:
        ValueError: shapes differ, or a bound is out of its range.
    """
    name = "clipped_policy_loss"
    _check_same(name, logp=logp, old_logp=old_logp, advantage=advantage)
    if not (epsilon_low >= 0 and epsilon_high >= 0):
        raise ValueError(f"{name}: epsilon_low={epsilon_low} and epsilon_high={epsilon_high} must be >= 0")
    if delta is not None and not delta > 1 + epsilon_high:
        raise ValueError(
            f"{name}: delta={delta} must be above 1 + epsilon_high = {1 + epsilon_high}, where clipping already ends; "
            "raise it, or leave it out"
        )
    advantage = advantage.detach()
    ratio = importance_ratio(logp, old_logp)
    clipped = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    if delta is not None:
        ratio = ratio.clamp(max=delta)
    return -torch.minimum(ratio * advantage, clipped * advantage)


def kl_penalty(logp: Tensor, ref_logp: Tensor, estimator: str) -> Tensor:
    """A one-sample estimate of KL(policy || reference) at each token that the policy drew (Schulman, 2020).

    With x = ref_logp - logp:

    | estimator | value | gradient in logp | mean value over the policy | mean gradient over the policy |
    |---|---|---|---|---|
    | k1 | -x | 1 | the KL, exactly; single values may be negative | 0: a value to log, no penalty |
    | k2 | x^2 / 2 | -x | the KL to second order | that of KL(policy, reference), exactly |
    | k3 | e^x - 1 - x | 1 - e^x | the KL, exactly, because e^x has mean 1 | that of KL(reference, policy) |

    k2 and k3 are never negative. k2 is MDPO's (arXiv 2508.13148); CJ-GRPO (arXiv 2509.23924), d1 (arXiv 2504.12216),
    coupled-GRPO (arXiv 2506.20639) and TRL use k3. So does TraceRL (arXiv 2509.06949), with the old policy in place of
    the reference.

    Args:
        logp: float32 or float64, any shape, in nats.
        ref_logp: the same shape; no gradient flows into it.
        estimator: as above.

    Returns:
        The same shape, in nats. k3 is inf for x above 88.7 in float32.

    Raises:
        ValueError: shapes differ, or an unknown estimator.
    """
    _check_same("kl_penalty", logp=logp, ref_logp=ref_logp)
    x = ref_logp.detach() - logp
    if estimator == "k1":
        return -x
    if estimator == "k2":
        return x.square() / 2
    if estimator == "k3":
        # expm1 keeps the digits that e^x - 1 loses near 0; its own rounding may still fall below x by one unit.
        return (x.expm1() - x).clamp(min=0)
    raise ValueError(f"kl_penalty: estimator={estimator!r} is unknown; use one of 'k1', 'k2', 'k3'")


def truncated_importance_weight(recomputed_logp: Tensor, recorded_logp: Tensor, cap: float) -> Tensor:
    """min(exp(recomputed_logp - recorded_logp), cap), a constant weight for a token that another model drew.

    The recorded log-probability is that of the sampler, which may differ from the trained model (caches, kernels,
    precision); the recomputed one is the trained model's, before the update. Their ratio turns an expectation over the
    sampler's tokens into one over the model's; the cap bounds the variance (truncated importance sampling, as in TRL).

    Args:
        recomputed_logp, recorded_logp: float32 or float64, one shape, in nats.
        cap: > 0.

    Returns:
        The same shape, in [0, cap], NaN where a log-probability is; no gradient.

    Raises:
        ValueError: shapes differ, or cap <= 0.
    """
    _check_same("truncated_importance_weight", recomputed_logp=recomputed_logp, recorded_logp=recorded_logp)
    if not cap > 0:
        raise ValueError(f"truncated_importance_weight: cap={cap} must be > 0")
    return importance_ratio(recomputed_logp.detach(), recorded_logp).clamp(max=cap)


def until_first_eos(tokens: Tensor, generated: Tensor, eos_ids: int | Iterable[int] | Tensor) -> Tensor:
    """The generated positions up to and including the first end token; all of them in a row without one.

    Args:
        tokens: int64 [B, L], canvases.
        generated: bool [B, L], positions that decoding wrote. End tokens elsewhere (in the prompt) do not count.
        eos_ids: the end tokens' ids; may be empty.

    Returns:
        bool [B, L].

    Raises:
        ValueError: shapes differ.
    """
    _check_same("until_first_eos", tokens=tokens, generated=generated)
    if isinstance(eos_ids, int):
        eos_ids = (eos_ids,)
    ids = torch.as_tensor(eos_ids if isinstance(eos_ids, Tensor) else tuple(eos_ids), device=tokens.device)
    ends = generated & torch.isin(tokens, ids.to(tokens.dtype))
    ends_before = ends.cumsum(-1) - ends.to(torch.int64)
    return generated & (ends_before == 0)


def _check_same(function: str, **tensors: Tensor) -> None:
    """Refuse tensors of different shapes: broadcasting them would multiply tokens with other tokens' numbers."""
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"{function}: all tensors must have the same shape, got {shapes}")
