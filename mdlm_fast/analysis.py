"""What a trajectory says about how a decoder works: parallelism, order, confidence, end tokens.

Functions take a `Trajectory` and return tensors, with NaN where nothing was committed. Steps are the rows' own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mdlm_fast.trajectory import Trajectory


@dataclass(frozen=True)
class StepProfile:
    """Per step, float64 [S], averaged over the committed tokens of all rows: tokens (a count over rows), confidence,
    logp, and the share of end tokens."""

    tokens: Tensor
    confidence: Tensor
    logp: Tensor
    eos_share: Tensor


def committed_tokens(trajectory: Trajectory) -> Tensor:
    """int64 [B], tokens that were committed and stayed."""
    return (trajectory.commit_step >= 0).sum(1)


def finalisation_parallelism(trajectory: Trajectory) -> Tensor:
    """float64 [B], tokens finalised per step among the steps that finalised any."""
    tokens = committed_tokens(trajectory).double()
    busy = torch.stack([(trajectory.commit_step == s).any(1) for s in range(trajectory.steps)] or [tokens != tokens])
    return tokens / busy.sum(0)


def generation_order(trajectory: Trajectory) -> Tensor:
    """float64 [B], Kendall's tau-b between commit step and position: 1 = left to right, -1 = right to left, near 0 = no
    order. Tokens of one step are ties. NaN where fewer than two tokens, or only one step, were committed."""
    return torch.tensor([_kendall(steps[steps >= 0]) for steps in trajectory.commit_step.long()], dtype=torch.float64)


def _kendall(steps: Tensor) -> float:
    """tau-b of steps, listed by position; positions are never tied."""
    count = steps.numel()
    if count < 2:
        return float("nan")
    signs = torch.sign(steps[None, :] - steps[:, None]).triu(1)
    pairs = count * (count - 1) / 2
    untied = int((signs != 0).sum())
    return float(signs.sum()) / (pairs * untied) ** 0.5 if untied else float("nan")


def step_profile(trajectory: Trajectory, eos_ids: tuple[int, ...] = ()) -> StepProfile:
    """Confidence, log-probability and end tokens of what each step committed (and was not masked again)."""
    step = trajectory.commit_step.long()
    kept = step >= 0
    index = step[kept]
    steps = trajectory.steps

    def total(values: Tensor) -> Tensor:
        return torch.zeros(steps, dtype=torch.float64, device=step.device).index_add_(0, index, values.double())

    tokens = total(torch.ones_like(index))
    is_eos = torch.isin(trajectory.sequences[kept], torch.tensor(eos_ids, dtype=torch.int64, device=step.device))
    return StepProfile(
        tokens=tokens,
        confidence=total(trajectory.commit_confidence[kept]) / tokens,
        logp=total(trajectory.commit_logp[kept]) / tokens,
        eos_share=total(is_eos) / tokens,
    )


def predicted_entropy(trajectory: Trajectory) -> Tensor:
    """float64 [S], mean entropy of the positions each step scored. Needs record="full", confidence="neg_entropy"."""
    if trajectory.predictions is None:
        raise ValueError('the trajectory has no predictions: decode with record="full" and confidence="neg_entropy"')
    return -trajectory.predictions.confidence.double().nanmean(dim=(0, 2))


def remasked_share(trajectory: Trajectory) -> Tensor:
    """float64 [B], share of the tokens written that were masked again or replaced; 0 without remasking."""
    if trajectory.events is None:
        return torch.zeros(trajectory.sequences.shape[0], dtype=torch.float64)
    written = (trajectory.events.token >= 0).sum((1, 2)).double()
    return 1 - committed_tokens(trajectory).double() / written
