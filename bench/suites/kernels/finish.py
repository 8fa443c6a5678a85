"""The two halves of `score_rows`, which a vocabulary that is split over devices needs apart."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from mdlm_fast import ops

from ...harness.results import OURS
from ...harness.timing import Candidate
from ..settings import Cell, Settings
from . import arena as arenas
from .cell import Prepared, kernel_cell
from .grid import Shape, centre
from .score import FIVE, SAMPLED, VARIANTS, ours, row_arguments

COPIES = 64  # of the partials, which are small


def cells(settings: Settings) -> Iterator[Cell]:
    """Both halves, greedy with all statistics, and the second half with a draw; in the full set at every shape."""
    for shape in centre(settings):
        yield kernel_cell(shape.case("score_partials", FIVE), partial(first_half, shape, settings), settings)
        for variant in (FIVE, SAMPLED):
            prepare = partial(second_half, shape, variant, settings)
            yield kernel_cell(shape.case("finish_scores", variant), prepare, settings)


def partials_of(logits: Tensor, variant: str, arguments: dict[str, Tensor]) -> Tensor:
    """float32 [rows, tiles, 8]."""
    shared = ("rows", "row_sequence", "temperature", "stats")
    keywords = {name: value for name, value in (VARIANTS[variant] | arguments).items() if name in shared}
    return ops.score_partials(logits, **keywords)


def equal_to_score_rows(logits: Tensor, variant: str, settings: Settings) -> dict[str, str]:
    """Raises AssertionError unless the halves together give the bits of `score_rows`."""
    whole = ours(variant, len(logits), settings.device)(logits)
    arguments = row_arguments(len(logits), settings.device, VARIANTS[variant].get("temperature"))
    halves = ops.finish_scores(
        partials_of(logits, variant, arguments), logits=logits, **(VARIANTS[variant] | arguments)
    )
    for name, a, b in zip(whole._fields, whole, halves, strict=True):
        if a is not None and b is not None:
            assert torch.equal(a, b), f"{name} of the two halves is not that of score_rows"
    return {OURS: "both halves together give the bits of score_rows"}


def first_half(shape: Shape, settings: Settings) -> Prepared:
    """Statistics of the tiles of all rows."""
    arena = arenas.arena(shape.dtype, settings.device)
    arguments = row_arguments(shape.rows, settings.device, None)

    def window(i: int) -> Tensor:
        return arena.window(i, shape.rows, shape.vocab)

    candidate = Candidate(OURS, lambda i: partials_of(window(i), FIVE, arguments))
    written = partials_of(window(0), FIVE, arguments).nbytes
    return Prepared(
        [candidate],
        lambda: equal_to_score_rows(window(0), FIVE, settings),
        {"bytes": float(shape.nbytes + written), "tokens": float(shape.rows)},
        window,
        {OURS: partial(candidate.call, 0)},
    )


def second_half(shape: Shape, variant: str, settings: Settings) -> Prepared:
    """From the statistics to scores; a draw reads one tile of the logits again. The statistics come from cache, where
    a decoder has just left them, so there is no side that reads them from memory."""
    arena = arenas.arena(shape.dtype, settings.device)
    arguments = row_arguments(shape.rows, settings.device, VARIANTS[variant].get("temperature"))
    keywords = VARIANTS[variant] | arguments

    def window(i: int) -> Tensor:
        return arena.window(i % COPIES, shape.rows, shape.vocab)

    copies = [partials_of(window(i), variant, arguments) for i in range(COPIES)]
    candidate = Candidate(OURS, lambda i: ops.finish_scores(copies[i % COPIES], logits=window(i), **keywords))
    return Prepared(
        [candidate],
        lambda: equal_to_score_rows(window(0), variant, settings),
        {"bytes": float(copies[0].nbytes), "tokens": float(shape.rows)},
        peaks={OURS: partial(candidate.call, 0)},
    )
