"""Log-probs of given tokens, with and without the LM head, against what trainers do: alone, and with gradients.

Every side is checked whole, on the inputs that are timed, against float64 (`gradient_check`). Peak memory counts
neither inputs nor the gradients that are returned. Where gradients are taken there is no side "read": the logits, or
the weight, must then be read twice, since the gradient of a log-prob comes in only after the last log-prob went out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mdlm_fast import ops

from ...baselines import logprobs as baselines
from ...baselines.score import compiled
from ...harness.results import OURS, Record
from ...harness.timing import Candidate
from ..settings import Settings
from . import arena as arenas
from .cell import KernelCell, Prepared, kernel_cell
from .gradient_check import Call, Problem, check, true_gradients, true_values
from .grid import CENTRE, DTYPES, Shape, cross
from .linear import HIDDEN, LIBRARY, hidden_states, product_reasons
from .score import ARRANGED, FEW_LOGITS, FIXED_COST

FORWARD, BOTH, ENTROPY = "forward", "forward + backward", "log-prob and entropy"
DENSE, TRL, CHUNKED = "log_softmax + gather", "TRL", "chunked linear cross-entropy"
#: Useful operations a logit, counted as `score.OPERATIONS`: log-prob, with the entropy, with the gradient (subtract,
#: exponential, two products).
OPERATIONS = {FORWARD: 4.0, ENTROPY: 6.0, BOTH: 8.0}
TRAINING_ROWS = (128, 256, 1024)
TRAINING_VOCABULARIES = (32_000, 126_464)

#: From the inputs (logits, or hidden states and weight) and the targets to log-probs, and maybe entropies: [N] each.
Function = Callable[..., Tensor | tuple[Tensor, Tensor]]


def ours_on_logits(logits: Tensor, targets: Tensor) -> Tensor:
    return ops.token_logprobs(logits, None, targets)[0]


def ours_with_head(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return ops.linear_token_logprobs(hidden, weight, None, None, targets)[0]


def after_product(
    function: Function, hidden: Tensor, weight: Tensor, targets: Tensor
) -> Tensor | tuple[Tensor, Tensor]:
    """A function of logits behind the library's product."""
    return function(F.linear(hidden, weight), targets)


#: Sides of `token_logprobs` by variant.
ON_LOGITS: dict[str, dict[str, Function]] = {
    FORWARD: {OURS: ours_on_logits, DENSE: baselines.log_softmax_gather, TRL: baselines.selective_log_softmax},
    ENTROPY: {
        OURS: lambda logits, targets: ops.token_logprobs(logits, None, targets),
        DENSE: baselines.log_softmax_gather_entropy,
        TRL: baselines.selective_log_softmax_entropy,
    },
}
ON_LOGITS[BOTH] = ON_LOGITS[FORWARD]

#: Sides of `linear_token_logprobs`.
WITH_HEAD: dict[str, Function] = {
    OURS: ours_with_head,
    LIBRARY: partial(after_product, ours_on_logits),
    DENSE: partial(after_product, baselines.log_softmax_gather),
    TRL: partial(after_product, baselines.selective_log_softmax),
    CHUNKED: baselines.chunked_linear_cross_entropy,
}

#: Why a side may be faster than `linear_token_logprobs` with its gradients.
STORED = "stores the logits and has three products; ours stores none and takes a fourth to have them again"
RECOMPUTED = "has four products as ours, but the library's"


#: Points on the lines of `token_logprobs` that the small set leaves out.
SPARED_ROWS, SPARED_VOCABULARY = (1, 128), 151_936


def cells(settings: Settings) -> Iterator[KernelCell]:
    """Both ops. In the small set the variants without gradients run at one shape, and lines have fewer points."""
    for shape in cross(settings):
        if settings.full or (shape.rows not in SPARED_ROWS and shape.vocab != SPARED_VOCABULARY):
            yield logits_cell(shape, BOTH, settings)
    for shape in cross(settings) if settings.full else (replace(CENTRE, rows=512),):
        for variant in (FORWARD, ENTROPY):
            yield logits_cell(shape, variant, settings)
    for shape, depth in head_shapes(settings):
        for variant in (FORWARD, BOTH) if settings.full else (BOTH,):
            yield head_cell(shape, depth, variant, settings)


def head_shapes(settings: Settings) -> Iterator[tuple[Shape, int]]:
    """Shapes of the logits that are not stored, and widths of the hidden states."""
    if not settings.full:
        yield Shape(torch.bfloat16, 256, CENTRE.vocab), HIDDEN
        yield Shape(torch.float32, 256, 32_000), HIDDEN
        return
    for dtype in DTYPES:
        for rows, vocab in itertools.product(TRAINING_ROWS, TRAINING_VOCABULARIES):
            yield Shape(dtype, rows, vocab), HIDDEN
            if dtype == torch.bfloat16:
                yield Shape(dtype, rows, vocab), 4 * HIDDEN


def logits_cell(shape: Shape, variant: str, settings: Settings) -> KernelCell:
    """A cell of `token_logprobs`."""

    def prepare() -> Prepared:
        arena = arenas.arena(shape.dtype, settings.device)
        problem = Problem(lambda i: (arena.window(i, shape.rows, shape.vocab),), *upstream(shape, settings))
        work = {
            "bytes": float(shape.nbytes * (3 if variant == BOTH else 1)),
            "operations": OPERATIONS[variant] * shape.elements,
            "tokens": float(shape.rows),
        }
        functions = ON_LOGITS[variant]
        if variant == BOTH and (settings.full or shape == CENTRE):
            functions = functions | {ARRANGED: compiled(baselines.cross_entropy)}
        prepared = prepared_sides(functions, problem, variant, work)
        if shape.elements < FEW_LOGITS:
            prepared.reasons = dict.fromkeys((DENSE, TRL, ARRANGED), FIXED_COST)
        if variant != BOTH:
            prepared.read = lambda i: arena.window(i, shape.rows, shape.vocab)
        return prepared

    cell = kernel_cell(shape.case("token_logprobs", variant), prepare, settings)
    return without_gradients(cell, shape.nbytes if variant == BOTH else 0)


def head_cell(shape: Shape, depth: int, variant: str, settings: Settings) -> KernelCell:
    """A cell of `linear_token_logprobs`: hidden [rows, depth], weight [vocab, depth]."""
    weight_bytes = shape.vocab * depth * shape.dtype.itemsize

    def prepare() -> Prepared:
        arena = arenas.arena(shape.dtype, settings.device)
        hidden = hidden_states(shape.rows, depth, shape.dtype, settings.device)
        problem = Problem(lambda i: (hidden, arena.window(i, shape.vocab, depth)), *upstream(shape, settings))
        work = {
            "bytes": float((weight_bytes + hidden.nbytes) * (3 if variant == BOTH else 1)),
            "operations": 2.0 * shape.elements * depth * (3 if variant == BOTH else 1),
            "tokens": float(shape.rows),
        }
        prepared = prepared_sides(WITH_HEAD, problem, variant, work)
        prepared.reasons = reasons(variant, hidden)
        if variant != BOTH:
            prepared.read = lambda i: arena.window(i, shape.vocab, depth)
        return prepared

    case = shape.case("linear_token_logprobs", variant) | {"hidden": depth}
    gradients = weight_bytes + shape.rows * depth * shape.dtype.itemsize
    return without_gradients(kernel_cell(case, prepare, settings), gradients if variant == BOTH else 0)


def reasons(variant: str, hidden: Tensor) -> dict[str, str]:
    """Why a side may be faster than `linear_token_logprobs`."""
    stored = dict.fromkeys((LIBRARY, DENSE, TRL), STORED) | {CHUNKED: RECOMPUTED} if variant == BOTH else {}
    units = product_reasons(WITH_HEAD, hidden)
    return {name: "; ".join(r[name] for r in (units, stored) if name in r) for name in units | stored}


def upstream(shape: Shape, settings: Settings) -> tuple[Tensor, Tensor]:
    """Targets int64 [N] and the gradients float32 [N] that come back to the log-probs, as of a loss's mean."""
    generator = torch.Generator(settings.device).manual_seed(1)
    targets = torch.randint(shape.vocab, (shape.rows,), device=settings.device, generator=generator)
    return targets, torch.randn(shape.rows, device=settings.device, generator=generator) / shape.rows


def prepared_sides(functions: dict[str, Function], problem: Problem, variant: str, work: dict[str, float]) -> Prepared:
    """Every function as something to time, to check and to measure the peak of."""
    wrap, truth = (differentiated, true_gradients) if variant == BOTH else (evaluated, true_values)
    calls = {name: wrap(function, problem) for name, function in functions.items()}
    return Prepared(
        [Candidate(name, call) for name, call in calls.items()],
        lambda: check(calls, truth(problem), problem, DENSE),
        work,
        peaks={name: partial(call, 0) for name, call in calls.items()},
    )


def evaluated(function: Function, problem: Problem) -> Call:
    """(log-probs [N], entropies [N] where there are any) without a graph."""

    def call(i: int) -> tuple[Tensor, ...]:
        with torch.no_grad():
            values = function(*problem.inputs(i), problem.targets)
        return values if isinstance(values, tuple) else (values,)

    return call


def differentiated(function: Function, problem: Problem) -> Call:
    """(log-probs [N], gradient of every input)."""

    def call(i: int) -> tuple[Tensor, ...]:
        leaves = [tensor.detach().requires_grad_() for tensor in problem.inputs(i)]
        logp = function(*leaves, problem.targets)
        assert isinstance(logp, Tensor)
        return logp.detach(), *torch.autograd.grad(logp, leaves, problem.upstream.to(logp.dtype))

    return call


def without_gradients(cell: KernelCell, nbytes: int) -> KernelCell:
    """The cell, whose peaks leave out `nbytes` of gradients, which every side returns."""

    def measure() -> Record:
        record = cell.measure()
        for side in record.sides.values():
            if side.peak_bytes is not None:
                side.peak_bytes = max(0, side.peak_bytes - nbytes)
        return record

    return replace(cell, measure=measure)
