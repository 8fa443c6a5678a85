"""Where a generated number stands in Markdown: between two comments, which no reader sees.

    it reads <!--n:read-rate-->26 GB/s<!--/n--> here

    <!--table:head-scores-->
    | rows | ... |
    <!--/table-->

A name is that of a function (`sources.figure`), with "-" for "_". The second form holds whole lines: a table, or what a
command printed. Neither may stand inside a block of code, where comments show.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

MARKED = re.compile(r"<!--(?P<kind>n|table):(?P<name>[a-z0-9-]+)-->(?P<text>.*?)<!--/(?P=kind)-->", re.DOTALL)
LOOSE = re.compile(r"<!--/?(?:n|table)\b.*?-->")


@dataclass(frozen=True)
class Difference:
    """A place whose text is not what its figure says.

    Attributes:
        line: its number, from 1.
    """

    line: int
    name: str
    old: str
    new: str


def rewrite(text: str, render: Callable[[str], str]) -> tuple[str, list[Difference]]:
    """A document with all its figures as they are now, and those that were not.

    Args:
        text: the document.
        render: the text of a figure by its name.

    Raises:
        ValueError: a marker that is not closed, or names a figure of several lines as a number.
    """
    differences = []

    def replace(match: re.Match[str]) -> str:
        kind, name, old = match["kind"], match["name"], match["text"]
        new = render(name)
        if kind == "n" and "\n" in new:
            raise ValueError(f"{name} has several lines: write <!--table:{name}--> ... <!--/table-->")
        if kind == "table":
            new = f"\n{new.rstrip()}\n"
        if new != old:
            differences.append(Difference(text.count("\n", 0, match.start()) + 1, name, old.strip(), new.strip()))
        return f"<!--{kind}:{name}-->{new}<!--/{kind}-->"

    loose = LOOSE.search(MARKED.sub("", text))
    if loose:
        raise ValueError(f"{loose[0]} has no partner, or a name that is not of small letters, digits and -")
    return MARKED.sub(replace, text), differences
