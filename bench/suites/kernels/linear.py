"""Scores from hidden states: `linear_score_rows` against the library's product and what decoders do with its logits.

Weights are windows of the arena, so that every call streams its weight from memory, as a decode step does whose body
has just used the cache. Hidden states are scaled so that logits have the arena's spread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mdlm_fast import ops
from mdlm_fast.doctor import instruction_set

from ...baselines.score import Scored, compiled, fast_dllm, likeliest, llada
from ...harness.results import OURS
from ...harness.timing import Candidate
from ..settings import MOST_BYTES, Settings
from . import arena as arenas
from .agreement import FLOAT32, at
from .cell import KernelCell, Prepared, kernel_cell
from .grid import CENTRE, Shape, cross
from .score import ARRANGED, BASELINES, FAST, GREEDY, LLADA, SAMPLED, VARIANTS, row_arguments

ALONE, LIBRARY = "library GEMM alone", "library GEMM + ours"
HIDDEN = 256  # width of the hidden states; the full set also has four times this
#: As `score.MOST_TEMPORARIES`, behind a product: on the CPU it leaves at least the 128 rows at which the product's time
#: already grows with them.
MOST_TEMPORARIES = {"cpu": 1_500_000_000, "cuda": MOST_BYTES}
SPARED_VOCABULARIES = (1_000, 151_936)  # by the small set
LEAST_DRAWS = 32  # that must be compared with ours before their number says anything


#: From logits [N, V] to scores.
Decoder = Callable[[Tensor], Scored]

#: From hidden [N, H] and weight [V, H] to scores: ours, a published decoder's, or only logits.
Side = Callable[[Tensor, Tensor], Any]


def hidden_states(rows: int, depth: int, dtype: torch.dtype, device: str) -> Tensor:
    """[rows, depth], which a weight from the arena turns into logits of the arena's spread."""
    generator = torch.Generator(device).manual_seed(2)
    return torch.randn(rows, depth, device=device, generator=generator).mul_(depth**-0.5).to(dtype)


def cells(settings: Settings) -> Iterator[KernelCell]:
    """Both variants at all shapes and H = HIDDEN; in the small set sampling at the centre alone, and fewer
    vocabularies. The full set has four times that H along the small set's cross: everywhere would add half an hour."""
    for shape in cross(settings):
        if settings.full or shape.vocab not in SPARED_VOCABULARIES:
            yield head_cell(shape, HIDDEN, GREEDY, settings)
        if settings.full or shape == CENTRE:
            yield head_cell(shape, HIDDEN, SAMPLED, settings)
    if settings.full:
        for shape in cross(replace(settings, full=False)):
            yield head_cell(shape, 4 * HIDDEN, GREEDY, settings)
            yield head_cell(shape, 4 * HIDDEN, SAMPLED, settings)


def head_cell(shape: Shape, depth: int, variant: str, settings: Settings) -> KernelCell:
    """A cell of `linear_score_rows`: hidden [rows, depth], weight [vocab, depth]."""

    def prepare() -> Prepared:
        arena = arenas.arena(shape.dtype, settings.device)
        hidden = hidden_states(shape.rows, depth, shape.dtype, settings.device)

        def weight(i: int) -> Tensor:
            return arena.window(i, shape.vocab, depth)

        found = sides(variant, shape.rows, settings.device, settings.full or shape == CENTRE)
        timed = candidates(variant, found, hidden, weight)

        def draws_check() -> dict[str, str]:
            """On more rows, where a few could be drawn alike by chance."""
            if variant != SAMPLED or shape.rows >= LEAST_DRAWS:
                return {}
            more = hidden_states(LEAST_DRAWS, depth, shape.dtype, settings.device)
            both = {n: s for n, s in sides(variant, LEAST_DRAWS, settings.device).items() if n in (OURS, LIBRARY)}
            return check(variant, both, more, weight(0))

        return Prepared(
            timed,
            lambda: check(variant, found, hidden, weight(0)) | draws_check(),
            {
                "bytes": float(weight(0).nbytes + hidden.nbytes),
                "operations": 2.0 * shape.elements * depth,
                "tokens": float(shape.rows),
            },
            read=weight,
            peaks={candidate.name: partial(candidate.call, 0) for candidate in timed},
            reasons={ALONE: "computes the logits and stops there", **product_reasons((LIBRARY, ARRANGED), hidden)},
        )

    return kernel_cell(shape.case("linear_score_rows", variant) | {"hidden": depth}, prepare, settings)


def sides(variant: str, rows: int, device: str, every: bool = False) -> dict[str, Side]:
    """By name, for hidden states [rows, H]; `every`: with those that the small set times at the centre alone. The last
    is the library's product alone, which scores nothing."""
    temperature = VARIANTS[variant].get("temperature")
    keywords = VARIANTS[variant] | row_arguments(rows, device, temperature)
    decoders: dict[str, Decoder] = {LLADA: partial(llada, temperature=temperature or 0.0)}
    if variant == GREEDY and every:
        decoders |= {FAST: fast_dllm, ARRANGED: compiled(likeliest)}
    return {
        OURS: partial(ops.linear_score_rows, **keywords),
        LIBRARY: lambda hidden, weight: ops.score_rows(F.linear(hidden, weight), **keywords),
        **{name: partial(after_product, decoder) for name, decoder in decoders.items()},
        ALONE: F.linear,
    }


def product_reasons(names: Iterable[str], hidden: Tensor) -> dict[str, str]:
    """Why these sides, which use the library's product, may be faster than ours on this processor."""
    if hidden.device.type != "cpu":
        return {}
    if hidden.dtype == torch.float16:
        return dict.fromkeys(names, "in float16 ours takes the library's product too")
    if hidden.dtype != torch.bfloat16 or not torch.cpu._is_amx_tile_supported():
        return {}
    if instruction_set() in (None, "amx"):
        return {}
    return dict.fromkeys(names, "the library multiplies bfloat16 on this processor's AMX unit, which ours leaves idle")


def after_product(decoder: Decoder, hidden: Tensor, weight: Tensor) -> Scored:
    """A decoder's scores behind the library's product."""
    return decoder(F.linear(hidden, weight))


def scored_rows(name: str, variant: str, hidden: Tensor, vocab: int) -> Tensor:
    """The hidden states that a side is given: fewer where its temporaries would take too much."""
    if name not in BASELINES[variant]:
        return hidden
    shape = Shape(hidden.dtype, hidden.shape[0], vocab)
    return hidden[: BASELINES[variant][name].rows(shape, MOST_TEMPORARIES[hidden.device.type])]


def candidates(
    variant: str, sides: Mapping[str, Side], hidden: Tensor, weight: Callable[[int], Tensor]
) -> list[Candidate]:
    """The sides on rotating weights."""
    rows = hidden.shape[0]
    found = []
    for name, side in sides.items():
        part = scored_rows(name, variant, hidden, weight(0).shape[0])
        text = f"{part.shape[0]} of {rows} rows" if part.shape[0] < rows else None
        call = partial(_call, side, part, weight)
        found.append(Candidate(name, call, factor=rows / part.shape[0], extrapolated_from=text))
    return found


def _call(side: Side, hidden: Tensor, weight: Callable[[int], Tensor], i: int) -> object:
    return side(hidden, weight(i))


def check(variant: str, sides: Mapping[str, Side], hidden: Tensor, weight: Tensor) -> dict[str, str]:
    """Compares every side with the library's logits, taken on in float64.

    A greedy token must be of the row's largest logit, or one that rounding cannot tell from it. The probability of the
    token, drawn or not, must be that of the library's logits to the rounding of one logit, and of the probability.
    Ours draws the tokens that `score_rows` draws from the library's logits, except where rounding decides; other draws
    come from another generator.

    Raises:
        AssertionError: a side gave something else.
    """
    logits = F.linear(hidden, weight).double()  # [N, V]
    log_p, top = logits.log_softmax(-1), logits.amax(-1)
    precision = torch.finfo(hidden.dtype).eps
    ulp = precision * top.abs().log2().floor().exp2() if hidden.dtype.itemsize < 4 else torch.full_like(top, FLOAT32)
    found, tokens = {ALONE: "its logits are what the others are compared with"}, {}
    for name, side in sides.items():
        if name == ALONE:
            continue
        part = scored_rows(name, variant, hidden, weight.shape[0])
        n, scores = part.shape[0], side(part, weight)
        tokens[name] = token = scores.token.long()
        logp = scores.confidence.double().log() if isinstance(scores, Scored) else scores.logp.double()
        off = (logp - at(log_p[:n], token)).abs()
        assert (off <= ulp[:n] + precision).all(), f"{name}: log-probs are off by up to {float(off.max()):.1e}"
        found[name] = f"log-probs within {float(off.max()):.1e}"
        if variant == GREEDY:
            short = top[:n] - at(logits[:n], token)
            assert (short <= ulp[:n]).all(), f"{name}: a logit is {float(short.max()):.1e} under the largest"
    for name in tokens.keys() - {OURS} if variant == GREEDY else {LIBRARY}:
        rows = len(tokens[name])
        equal = int((tokens[name] == tokens[OURS][:rows]).sum())
        if variant == SAMPLED and rows >= LEAST_DRAWS:
            assert rows - equal <= rows // 8, f"{name}: {rows - equal} of {rows} draws differ from ours"
        found[name] = f"{equal} of {rows} tokens equal, {found[name]}"
    return found
