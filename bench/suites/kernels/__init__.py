"""The suite "kernels": every op against what decoders and trainers do without it, and against the machine's limits."""

from __future__ import annotations

from collections.abc import Iterator

from ..settings import Cell, Settings
from . import ceilings, commit, finish, linear, logprobs, score
from .grid import DTYPES

#: Modules with `cells(settings)`, in the order in which they run.
OPS = (ceilings, score, finish, commit, linear, logprobs)


def cells(settings: Settings) -> Iterator[Cell]:
    """Every cell of the suite, dtype by dtype, so that the buffer of logits is made once for each."""
    names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    every = [cell for op in OPS for cell in op.cells(settings)]
    yield from sorted(every, key=lambda cell: names.index(cell.case.get("dtype", names[0])))
