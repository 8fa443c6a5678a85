"""Log-probs of views: one forward pass for a pack of them, in which only the scored rows meet the LM head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mdlm_fast.models import MaskedDiffusionModel
from mdlm_fast.ops import HeadGradient
from mdlm_fast.rl.views import View, join, token_values
from mdlm_fast.trajectory import Trajectory


@dataclass(frozen=True)
class Normaliser:
    """What the rollout's log-probs were normalised over; training must use the same, or ratios are not 1.

    temperature: logits are divided by it. forbidden_ids, vocab_limit: ids outside the distribution."""

    temperature: float
    forbidden_ids: tuple[int, ...]
    vocab_limit: int | None

    @classmethod
    def of(cls, trajectory: Trajectory, temperature: float) -> Normaliser:
        """That of a trajectory (normalize_over="all" leaves nothing out)."""
        if trajectory.normalize_all:
            return cls(temperature, (), None)
        return cls(temperature, trajectory.forbidden_ids, trajectory.vocab_limit)


def score_views(
    model: MaskedDiffusionModel,
    views: Sequence[View],
    normaliser: Normaliser,
    module: nn.Module | None = None,
    head_gradient: HeadGradient | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probs of the views' tokens, and entropies of their rows, in one forward pass.

    Args:
        model: gives padding, shift and head. views: at least one, all with canvases of one length.
        module: what to call in place of `model.model`, e.g. inside DistributedDataParallel.
        head_gradient: collects the LM head's gradient; None: it flows with the others.

    Returns:
        (log-probs, differentiable, float32 [N] a view; entropies, detached, float32 [N] a view, of the first of a
        token's rows where several are mixed: their mixture has none).
    """
    input_ids, attention_mask, rows, targets = join(views)
    logp, entropy = model.token_logprobs(
        input_ids,
        rows,
        targets,
        attention_mask=attention_mask,
        module=module,
        head_gradient=head_gradient,
        temperature=normaliser.temperature,
        forbidden_ids=normaliser.forbidden_ids or None,
        vocab_limit=normaliser.vocab_limit,
    )
    return token_values(views, logp), _entropies(views, entropy.detach())


def _entropies(views: Sequence[View], of_rows: Tensor) -> list[Tensor]:
    result = []
    for view, values in zip(views, of_rows.split([v.rows.shape[0] for v in views]), strict=True):
        if view.mix is not None:
            first = torch.full((view.tokens,), values.shape[0], dtype=torch.int64, device=values.device)
            index = torch.arange(values.shape[0], device=values.device)
            first = first.scatter_reduce(0, view.mix.token, index, "amin")
            values = values[first]
        result.append(values)
    return result


@torch.no_grad()
def log_probs(
    model: MaskedDiffusionModel,
    packs: Sequence[Sequence[View]],
    normaliser: Normaliser,
    module: nn.Module | None = None,
) -> list[Tensor]:
    """Log-probs of the tokens of all views, pack by pack, without gradients: float32 [N] a view, in order."""
    return [values for pack in packs for values in score_views(model, pack, normaliser, module)[0]]
