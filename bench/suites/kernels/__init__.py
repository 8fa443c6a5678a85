"""The suite "kernels": every op against what decoders and trainers do without it, and against the machine's limits."""

from __future__ import annotations

from collections.abc import Iterator

from ..settings import Cell, Settings
from . import ceilings

#: Modules with `cells(settings)`, in the order in which they run.
OPS = (ceilings,)


def cells(settings: Settings) -> Iterator[Cell]:
    """Every cell of the suite."""
    for op in OPS:
        yield from op.cells(settings)
