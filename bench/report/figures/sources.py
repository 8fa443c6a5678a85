"""The results files, and the functions that make a document's figures of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ...harness.results import Results
from ..markdown import markdown_table
from ..tables import Column, Entry, Table
from ..views import View, views

BENCHMARKS = "benchmarks.json"


class NotMeasured(Exception):
    """A result that a document shows is in no results file; the text says which and what measures it."""


class Sources:
    """Results files by name, read once.

    Args:
        folder: where they lie, docs/ in a checkout.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, Any] = {}

    def json(self, name: str, command: str) -> Any:
        """A file's content.

        Args:
            name: of the file.
            command: that makes it.

        Raises:
            NotMeasured: it is not there.
        """
        if name not in self._read:
            path = self._folder / name
            if not path.exists():
                raise NotMeasured(f"{name} is not there: {command}")
            self._read[name] = json.loads(path.read_text(encoding="utf-8"))
        return self._read[name]

    @cached_property
    def cpu(self) -> View:
        """What was measured on the CPU last, of the benchmarks.

        Raises:
            NotMeasured: nothing was.
        """
        results = Results.load(self._folder / BENCHMARKS)
        found = [view for view in views(results) if view.newest["device"] == "cpu"]
        if not found:
            raise NotMeasured(f"{BENCHMARKS} has no results of a CPU: make bench")
        return max(found, key=lambda view: str(view.newest["date"]))


#: A figure's text from the results.
Figure = Callable[[Sources], str]
FIGURES: dict[str, Figure] = {}


def register(name: str, function: Figure) -> None:
    """Makes a function known to documents."""
    assert name not in FIGURES, name
    FIGURES[name] = function


def figure(function: Figure) -> Figure:
    """The same by the function's own name, with "-" for "_"."""
    register(function.__name__.replace("_", "-"), function)
    return function


def rows_table(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A table of texts in Markdown.

    Args:
        texts: columns from the left that are aligned as text; the others as numbers.
    """
    columns = [Column(head, number >= texts) for number, head in enumerate(heads)]
    return markdown_table(Table("", columns, [[Entry(text) for text in row] for row in rows]))


def only(records: Sequence[Mapping[str, Any]], where: str, **values: Any) -> Mapping[str, Any]:
    """The one record with these values.

    Raises:
        NotMeasured: there is none, or several.
    """
    found = [record for record in records if all(record.get(name) == value for name, value in values.items())]
    if len(found) != 1:
        wanted = ", ".join(f"{name} = {value}" for name, value in values.items())
        raise NotMeasured(f"{where} has {len(found)} records with {wanted}")
    return found[0]
