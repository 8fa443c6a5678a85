"""Whole decodes: the loops of published systems against ours in their place, on one random model.

"The model" is its body, the transformer without the LM head: every decoder must run it on the whole canvas once a step.
What decoders differ in is all the rest: how many positions meet the head, in which dtypes they are scored, how
positions are chosen. Nobody caches keys and values here.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ..settings import Cell, Settings
from .cell import measure
from .shape import shapes


def cells(settings: Settings) -> Iterator[Cell]:
    """One a shape."""
    for shape in shapes(settings.full):
        yield Cell("decode", shape.case(), partial(measure, shape, settings))
