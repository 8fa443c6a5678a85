"""A picture that can be drawn."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from ..views import View


@dataclass(frozen=True)
class Picture:
    """What stands on a page.

    Attributes:
        name: of its file, without ".png".
        suite: in whose section it stands.
        title: what is measured.
        caption: how to read it, in sentences.
        draw: makes the figure, within `style.style()`.
    """

    name: str
    suite: str
    title: str
    caption: str
    draw: Callable[[], Figure]


def file_name(view: View, name: str) -> str:
    """A name that no other machine's picture has."""
    machine = re.sub(r"\((r|tm)\)", "", view.machine.lower())
    return re.sub(r"[^a-z0-9]+", "-", f"{machine} {name.lower()}").strip("-")
