"""Numbers and tables in Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from bench.learning.analysis import Array, Cell
from bench.learning.runs import METHODS, ROLLOUTS


def spread(values: Array) -> str:
    """Mean and sample standard deviation; the mean alone of a single value."""
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" if len(values) > 1 else f"{values.mean():.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, a line break behind it."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def paragraph(text: str) -> str:
    """Text in lines of at most 120 characters, a line break behind it."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def place(key: tuple[str, str]) -> str:
    """Task and rollouts."""
    return f"{key[1].capitalize()}, {ROLLOUTS[key[0]].label}"


def name(cell: Cell) -> str:
    """The method's name."""
    return METHODS[cell.method].label
