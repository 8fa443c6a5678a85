"""Log-probs, entropies and gradients of all sides against float64, before any is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...harness.results import OURS

#: What a side computes from the i-th inputs: log-probs [N] first, then entropies [N], or the gradient of every input.
Call = Callable[[int], tuple[Tensor, ...]]

CHUNK = 64  # rows in float64 at a time
#: How far log-probs and entropies may be off, nats: logits up to 16, log-probs under -16 and the terms of an entropy
#: are rounded to the inputs' dtype, and PyTorch's sums over a large vocabulary lose digits in float32 too.
MOST_NATS = {torch.float32: 5e-4, torch.float16: 0.05, torch.bfloat16: 0.25}
#: How far gradients may be off, a share of their norm; they are rounded to the inputs' dtype.
MOST_RELATIVE = {torch.float32: 1e-5, torch.float16: 0.003, torch.bfloat16: 0.02}
SLACK = 1e-6  # an ulp of a log-prob near 12


@dataclass(frozen=True)
class Problem:
    """What all sides are given.

    Attributes:
        inputs: of the i-th call: (logits [N, V],), or (hidden [N, H], weight [V, H]).
        targets: int64 [N].
        upstream: float32 [N], gradients that come back to the log-probs.
    """

    inputs: Callable[[int], tuple[Tensor, ...]]
    targets: Tensor
    upstream: Tensor


def true_values(problem: Problem, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Log-probs [N] and entropies [N] of call 0 in float64, or as PyTorch has them in another dtype."""
    parts = []
    for rows, log_p in log_softmaxes(problem, dtype):
        chosen = log_p.gather(1, problem.targets[rows, None])[:, 0]
        parts.append((chosen, -(log_p.exp() * log_p).sum(-1)))
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def true_gradients(problem: Problem) -> tuple[Tensor, ...]:
    """float64 log-probs [N], and the gradients of call 0's inputs."""
    first, *weight = (tensor.double() for tensor in problem.inputs(0))
    logps, grads = [], [torch.zeros_like(tensor) for tensor in (first, *weight)]
    for rows, log_p in log_softmaxes(problem, torch.float64):
        targets, upstream = problem.targets[rows, None], problem.upstream[rows, None].double()
        logps.append(log_p.gather(1, targets)[:, 0])
        grad_logits = (-upstream * log_p.exp()).scatter_add_(1, targets, upstream)  # [n, V]
        if weight:
            grads[0][rows] = grad_logits @ weight[0]
            grads[1].addmm_(grad_logits.t(), first[rows])
        else:
            grads[0][rows] = grad_logits
    return torch.cat(logps), *grads


def log_softmaxes(problem: Problem, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Slices of at most CHUNK rows, and the log-softmax [n, V] of their logits in call 0, in a dtype throughout."""
    first, *weight = problem.inputs(0)
    wide = [tensor.to(dtype).t() for tensor in weight]
    for start in range(0, first.shape[0], CHUNK):
        rows = slice(start, start + CHUNK)
        part = first[rows].to(dtype)
        yield rows, (part @ wide[0] if wide else part).log_softmax(-1)


def check(calls: Mapping[str, Call], truth: tuple[Tensor, ...], problem: Problem, plain: str) -> dict[str, str]:
    """How far every side is from the truth.

    Ours may be off twice as far as PyTorch. For log-probs and entropies of given logits that is PyTorch in float32 on
    the upcast logits, whatever their dtype; for gradients, and where the logits are a product that is rounded to the
    inputs' dtype, it is plain PyTorch in that dtype.

    Args:
        calls: by side.
        truth: float64, in the order of a call's outputs; what a call leaves out is not compared.
        problem: that the truth is of.
        plain: the side that is plain PyTorch in the inputs' dtype.

    Raises:
        AssertionError: a side is off further than its dtype explains, or ours further than PyTorch allows.
    """
    dtype = problem.inputs(0)[0].dtype
    found = {name: [distance(*pair) for pair in zip(call(0), truth, strict=False)] for name, call in calls.items()}
    errors_of_pytorch = list(found[plain])
    if len(problem.inputs(0)) == 1:
        pairs = zip(true_values(problem, torch.float32), truth, strict=False)
        float32 = [distance(value, true) for value, true in pairs if true.dim() == 1]
        errors_of_pytorch[: len(float32)] = float32
    for name, errors in found.items():
        for k, error in enumerate(errors):
            limit = (MOST_NATS if truth[k].dim() == 1 else MOST_RELATIVE)[dtype]
            if name == OURS:
                limit = min(limit, 2 * errors_of_pytorch[k] + SLACK)
            assert error <= limit, f"{name}: output {k} is off float64 by {error:.1e}, more than {limit:.1e}"
    return {name: describe(errors, truth) for name, errors in found.items()}


def distance(value: Tensor, truth: Tensor) -> float:
    """Largest difference of values [N]; of gradients [n, m] the norm of the difference over that of the truth."""
    if truth.dim() == 1:
        return float((value.double() - truth).abs().max())
    parts = zip(value.split(CHUNK), truth.split(CHUNK), strict=True)
    return sum(float((a.double() - b).square().sum()) for a, b in parts) ** 0.5 / float(truth.norm())


def describe(errors: Sequence[float], truth: Sequence[Tensor]) -> str:
    """E.g. "float64's to 2.1e-07 nats, gradients to 3.0e-05 of their norm"."""
    values = [error for error, true in zip(errors, truth, strict=False) if true.dim() == 1]
    gradients = [error for error, true in zip(errors, truth, strict=False) if true.dim() == 2]
    text = f"float64's to {max(values):.1e} nats"
    return f"{text}, gradients to {max(gradients):.1e} of their norm" if gradients else text
