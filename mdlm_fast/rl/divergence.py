"""TrainingDiverged: a run whose numbers are no longer any good stops before they reach the weights, and says where."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from mdlm_fast.models import MaskedDiffusionModel
from mdlm_fast.ops import BadLogits
from mdlm_fast.rl.scoring import Normaliser, log_probs
from mdlm_fast.rl.views import View

_ADVICE = "The update was not made; lower learning_rate, num_iterations or max_grad_norm, or go on from a checkpoint"


class TrainingDiverged(RuntimeError):
    """A log-prob, loss or gradient is not finite, or the policy moved too far from the one that acted. The optimizer
    step that the message names was not made."""


def check_ratios(
    views: Sequence[View], logps: Sequence[Tensor], max_log_ratio: float, *, optimizer_step: int, prompts: Tensor
) -> None:
    """Raises TrainingDiverged where a log-prob is not finite or a ratio exploded, naming the first such token.

    logps: detached, a view each. prompts: int64, the prompt number of each sequence that views speak of."""
    bad = [~(_log_ratio(view, logp).abs() <= max_log_ratio) for view, logp in zip(views, logps, strict=True)]
    if not bad or not bool(torch.cat(bad).any()):
        return
    number = next(number for number, wrong in enumerate(bad) if bool(wrong.any()))
    view, logp = views[number], logps[number]
    token = int(bad[number].nonzero()[0])
    parts = {"new policy": logp, "policy that acted": view.old_logp, "reference": view.ref_logp}
    values = {name: float(part[token]) for name, part in parts.items() if part is not None}
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        cause = f"its log-prob under the {wrong[0]} is {values[wrong[0]]}"
    else:
        ratio = float(_log_ratio(view, logp)[token])
        cause = (
            f"its log ratio of new to old policy is {ratio:.3g} (its log-prob {values['new policy']:.4g}), and "
            f"max_log_ratio={max_log_ratio:g}"
        )
    sequence = int(view.sequence[token])
    raise TrainingDiverged(
        f"optimizer step {optimizer_step}, {_place(view.step, sequence, prompts)}, token {token} of its view: {cause}. "
        + _ADVICE
    )


def check_gradients(model: nn.Module, *, optimizer_step: int) -> None:
    """Raises TrainingDiverged where a gradient is NaN or infinite although the loss was not, naming the parameter.

    model: with the gradients of all micro-batches, reduced over processes; of sharded ones this process's part counts.
    """
    gradients = {
        name: p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    if math.isfinite(get_total_norm(gradients.values())):
        return
    wrong = [name for name, gradient in gradients.items() if not bool(torch.isfinite(gradient).all())]
    what = f"the gradient of {wrong[0]} (and of {len(wrong) - 1} others)" if wrong else "the norm of the gradient"
    raise TrainingDiverged(f"optimizer step {optimizer_step}: {what} is not finite, although the loss is. {_ADVICE}")


@contextmanager
def naming_bad_logits(
    model: MaskedDiffusionModel, views: Sequence[View], normaliser: Normaliser, *, optimizer_step: int, prompts: Tensor
) -> Iterator[None]:
    """Turns BadLogits, raised where views were scored together, into TrainingDiverged that names the first of them and
    its sequence."""
    try:
        yield
    except BadLogits as error:
        for view in views:
            for sequence in view.owner.unique():
                part = view.select(torch.arange(prompts.shape[0], device=sequence.device) == sequence)
                try:
                    log_probs(model, [[part or view]], normaliser)
                except BadLogits as own:
                    raise TrainingDiverged(
                        f"optimizer step {optimizer_step}, {_place(view.step, int(sequence), prompts)}: "
                        f"{_why(own, model.model)}. {_ADVICE}"
                    ) from error
        raise


@contextmanager
def naming_rollout(model: MaskedDiffusionModel, *, optimizer_step: int) -> Iterator[None]:
    """Turns BadLogits, raised where a rollout was decoded and scored, into TrainingDiverged."""
    try:
        yield
    except BadLogits as error:
        raise TrainingDiverged(
            f"optimizer step {optimizer_step}, while its rollout was decoded and scored: {_why(error, model.model)}. "
            + _ADVICE
        ) from error


def _place(step: int, sequence: int, prompts: Tensor) -> str:
    return f"denoising step {step}, sequence {sequence} (prompt {int(prompts[sequence])})"


def _why(error: BadLogits, module: nn.Module) -> str:
    wrong = [name for name, parameter in module.named_parameters() if not bool(torch.isfinite(parameter).all())]
    weights = f"the weights are no longer finite, first {wrong[0]}" if wrong else "the weights are finite"
    return f"{error}, and {weights}"


def _log_ratio(view: View, logp: Tensor) -> Tensor:
    """New minus old; 0 where there is no old, NaN where anything is."""
    difference = logp - (logp if view.old_logp is None else view.old_logp)
    return difference if view.ref_logp is None else difference + 0 * view.ref_logp
