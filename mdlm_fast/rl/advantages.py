"""Advantages: how much better each completion, or each step of it, was than its group.

A group is the completions of one prompt. ``groups`` holds one id per row: int64 [N], any ids, in any order, groups of
any sizes. A reward of NaN means that nothing scored the row (every reward function returned None): the row is left out
of all statistics and its advantage is 0. A group whose rewards are all equal gets exactly 0. Results have the dtype and
device of the rewards, and no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from mdlm_fast.rl._groups import Groups, check_floating, check_rows, divide

SCALES = ("none", "group", "batch")
AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")
CENTERINGS = ("uniform", "negative", "none")


def combine_rewards(rewards: Tensor, weights: Tensor, groups: Tensor, aggregation: str) -> Tensor:
    """One reward a row from those of F reward functions, by TRL's ``multi_objective_aggregation``.

    A function that did not score a row (NaN) adds nothing to it; a row that no function scored stays NaN.

    - "sum_then_normalize": sum_f weights[f] * rewards[n, f]. Give the result to `group_advantages`.
    - "normalize_then_sum": the same sum of each function's z-scores within the group (unbiased standard deviation,
      eps 1e-4), so that a function counts by its weight and not by its spread. TRL then always divides by the batch's
      standard deviation: `group_advantages` with scale="batch" does that, because the sums of a group have mean 0.

    Args:
        rewards: float32 or float64 [N, F], NaN where a function returned None.
        weights: floating [F].
        groups: int64 [N].
        aggregation: as above.

    Returns:
        [N], NaN where no function scored the row.

    Raises:
        ValueError: wrong shapes or devices, or an unknown aggregation. TypeError: wrong dtypes.
    """
    _check_option("combine_rewards", "aggregation", aggregation, AGGREGATIONS)
    check_rows("combine_rewards", "rewards", rewards, groups, dims=2)
    if weights.shape != rewards.shape[1:]:
        raise ValueError(
            f"combine_rewards: weights must have shape [{rewards.shape[1]}], one for each reward function, "
            f"got {list(weights.shape)}"
        )
    rewards = rewards.detach()
    scored = ~rewards.isnan()
    if aggregation == "sum_then_normalize":
        terms = rewards.where(scored, 0.0)
    else:
        terms = Groups(groups).z_scores(rewards, unbiased=True, eps=1e-4)
    # One function after the other: a sum over a dimension may round equal rows differently, and a group of equal
    # rewards would no longer be one.
    combined = torch.zeros_like(rewards[:, 0])
    for term, weight in zip(terms.unbind(1), weights.to(rewards).unbind(), strict=True):
        combined = combined + weight * term
    return combined.where(scored.any(1), torch.nan)


def group_advantages(
    rewards: Tensor, groups: Tensor, *, scale: str = "none", unbiased: bool = True, eps: float = 1e-4
) -> Tensor:
    """A = (r - mean of the group) / spread, GRPO's advantage (arXiv 2402.03300).

    The spread is 1 (scale="none": CJ-GRPO, arXiv 2509.23924, and d1, arXiv 2504.12216, as released), the group's
    standard deviation + eps (scale="group", TRL's default) or the batch's + eps (scale="batch"; the mean remains the
    group's). TraceRL (arXiv 2509.06949) is scale="group", unbiased=False, eps=0.

    Args:
        rewards: float32 or float64 [N], NaN = not scored.
        groups: int64 [N].
        scale: as above.
        unbiased: divide squares by n - 1 instead of n, n the number of scored rows. A single row has deviation 0.
        eps: >= 0, added to the standard deviation, in units of the reward. With 0, a spread of 0 gives advantage 0.

    Returns:
        [N]; 0 where the reward is NaN; exactly 0 in groups of equal rewards, whatever the scale.

    Raises:
        ValueError: wrong shapes or devices, an unknown scale, eps < 0. TypeError: wrong dtypes.
    """
    _check_option("group_advantages", "scale", scale, SCALES)
    _check_eps("group_advantages", eps)
    check_rows("group_advantages", "rewards", rewards, groups, dims=1)
    rewards = rewards.detach()
    members = Groups(groups)
    if scale == "group":
        return members.z_scores(rewards, unbiased, eps)
    deviation, _ = members.deviations(rewards)
    if scale == "none":
        return deviation
    everything = Groups(torch.zeros_like(groups))
    return divide(deviation, everything.standard_deviation(rewards, unbiased), eps)


def leave_one_out_advantages(rewards: Tensor, groups: Tensor) -> Tensor:
    """A_i = r_i - mean of the group's other rewards, as in coupled-GRPO (arXiv 2506.20639) and RLOO (arXiv 2402.14740).

    With m the mean of the n rewards: r_i - (n m - r_i) / (n - 1) = n / (n - 1) (r_i - m), so the advantage is that of
    `group_advantages` without scale, times n / (n - 1). No r_i is in its own baseline, so the gradient is unbiased.

    Args:
        rewards: float32 or float64 [N], NaN = not scored.
        groups: int64 [N], at least two rows in each group.

    Returns:
        [N]; 0 where the reward is NaN, and where it is the only one of its group that is not.

    Raises:
        ValueError: wrong shapes or devices, a group of one row. TypeError: wrong dtypes.
    """
    check_rows("leave_one_out_advantages", "rewards", rewards, groups, dims=1)
    members = Groups(groups)
    alone = members.sum(torch.ones_like(groups)) < 2
    if alone.any():
        raise ValueError(
            f"leave_one_out_advantages: group {int(groups[alone][0])} has one row and nothing to compare it with; "
            "use at least two generations a prompt"
        )
    deviation, number = members.deviations(rewards.detach())
    return deviation * number / (number - 1).clamp(min=1)


def step_advantages(step_rewards: Tensor) -> Tensor:
    """MDPO's advantage of each denoising step (arXiv 2508.13148), before `normalize_steps`.

    With r_t the reward of the text decoded from step t's prediction, t = 0..T-1, and r_{-1} = 0:

        A_t = (r_t - r_{t-1}) + mean_{s > t} r_s,   at the last step the mean is r_{T-1} itself:

    what the step gained, and what came of it. (The released code adds 1, which the normalisation takes away again.)
    Counted from the end, u = T-1-t, this is the paper's r_u - r_{u+1} + (1/u) sum_{j < u} r_j.

    NaN is a step without a reward. Rows of fewer steps end in NaN, and T is then the row's own. Where r_t or r_{t-1} is
    NaN, so is A_t; means are taken of the rewards that are there.

    Args:
        step_rewards: float32 or float64 [B, S].

    Returns:
        [B, S].

    Raises:
        ValueError: not two-dimensional. TypeError: wrong dtype.
    """
    check_floating("step_advantages", "step_rewards", step_rewards, dims=2)
    rewards = step_rewards.detach()
    scored = ~rewards.isnan()
    later = _sum_of_later(scored.to(rewards.dtype))
    future = torch.where(later > 0, _sum_of_later(rewards.where(scored, 0.0)) / later.clamp(min=1), rewards)
    before = pad(rewards, (1, 0))[:, :-1]
    return (rewards - before) + future


def normalize_steps(advantages: Tensor, groups: Tensor, eps: float = 1e-4) -> Tensor:
    """(A[b, t] - mean) / (standard deviation + eps) of every step, over the rows of a group (MDPO, arXiv 2508.13148).

    The standard deviation is the unbiased one.

    Args:
        advantages: float32 or float64 [B, S]; NaN = no such step: left out.
        groups: int64 [B].
        eps: >= 0.

    Returns:
        [B, S]; 0 where the advantage is NaN, and exactly 0 at a step where the group's advantages are all equal.

    Raises:
        ValueError: wrong shapes or devices, eps < 0. TypeError: wrong dtypes.
    """
    _check_eps("normalize_steps", eps)
    check_rows("normalize_steps", "advantages", advantages, groups, dims=2)
    return Groups(groups).z_scores(advantages.detach(), unbiased=True, eps=eps)


def rank_steps(advantages: Tensor, groups: Tensor, k: int) -> Tensor:
    """The ``k`` steps that MDPO trains on: the largest sums of |A[b, t]| over a group (arXiv 2508.13148).

    Args:
        advantages: float32 or float64 [B, S]; NaN counts as 0.
        groups: int64 [B].
        k: >= 1.

    Returns:
        int64 [B, min(k, S)], the same steps for all rows of a group, largest sum first, ties to the earlier step. Steps
        with a sum of 0 come last but are not left out: their KL penalty still acts.

    Raises:
        ValueError: wrong shapes or devices, k < 1. TypeError: wrong dtypes.
    """
    check_rows("rank_steps", "advantages", advantages, groups, dims=2)
    if k < 1:
        raise ValueError(f"rank_steps: k={k} must be at least 1")
    size = advantages.detach().abs().nan_to_num(nan=0.0, posinf=torch.inf)
    return Groups(groups).sum(size).sort(dim=1, descending=True, stable=True).indices[:, :k]


def distribution_matching_advantages(
    rewards: Tensor, log_ratio: Tensor, groups: Tensor, alpha: float, centering: str
) -> Tensor:
    """DMPO's weights less a baseline (arXiv 2510.08233), to multiply the log-probability of each completion with.

    The target is the reward-tilted reference, p*(x) proportional to p_ref(x) exp(r(x) / alpha). Fitting it means to
    minimise -E_{p*}[log p(x)], and completions drawn from the rollout policy stand for p* with self-normalised
    importance weights:

        w_i = softmax over the group of (r_i / alpha + log_ratio_i),
        log_ratio_i = log p_ref(x_i) - log p_rollout(x_i).

    All w_i are positive, so in a small group even bad completions would be made likelier. A_i = w_i - b_i with

    - "uniform": b_i = 1 / n, the mean of the n weights. The A_i of a group sum to 0;
    - "negative": b_i = softmax of (-r_i / alpha + log_ratio_i), the weight under the opposite reward. The A_i sum to 0
      too. The released training script uses this one;
    - "none": b_i = 0. The A_i sum to 1.

    Args:
        rewards: float32 or float64 [N], NaN = not scored: weight and advantage 0.
        log_ratio: [N], same dtype, in nats, per completion; zeros where there is no reference.
        groups: int64 [N].
        alpha: > 0, temperature of the target, in units of the reward.
        centering: as above.

    Returns:
        [N]. With centering and equal rewards: exactly 0 where the log ratios are equal, and with "negative" always;
        "uniform" then still pulls the policy towards the reference.

    Raises:
        ValueError: wrong shapes or devices, alpha <= 0, an unknown centering. TypeError: wrong dtypes.
    """
    name = "distribution_matching_advantages"
    _check_option(name, "centering", centering, CENTERINGS)
    check_rows(name, "rewards", rewards, groups, dims=1)
    check_rows(name, "log_ratio", log_ratio, groups, dims=1)
    if not 0.0 < alpha < float("inf"):
        raise ValueError(f"{name}: alpha={alpha} must be finite and > 0")
    members = Groups(groups)
    scored = ~rewards.isnan()
    tilt = members.above_smallest(rewards.detach()) / alpha
    log_ratio = log_ratio.detach()
    weight = members.softmax(tilt + log_ratio, scored)
    if centering == "none":
        return weight
    if centering == "negative":
        return weight - members.softmax(log_ratio - tilt, scored)
    uniform = 1.0 / members.sum(scored.to(rewards.dtype)).clamp(min=1)
    return (weight - uniform).where(scored, 0.0)


def _sum_of_later(values: Tensor) -> Tensor:
    """sum_{s > t} values[b, s], [B, S]."""
    return pad(values.flip(1).cumsum(1).flip(1), (0, 1))[:, 1:]


def _check_option(function: str, name: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ValueError(f"{function}: {name}={value!r} is unknown; use one of {', '.join(map(repr, options))}")


def _check_eps(function: str, eps: float) -> None:
    if not eps >= 0:
        raise ValueError(f"{function}: eps={eps} must be >= 0")
