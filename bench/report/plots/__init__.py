"""Pictures of results: what there is to draw, its caption, and files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mdlm_fast.plots import save_png

from ...harness.results import Results
from ..views import View, views
from . import cost, decode, dots, heat, quality, rl, roofline
from .picture import Picture
from .style import style

#: Modules with `pictures(view)`, in the order in which a page shows what they draw.
KINDS = (dots, roofline, cost, heat, decode, quality, rl)


def pictures(view: View) -> Iterator[Picture]:
    """All pictures of a machine's results, as far as they go; nothing is drawn yet."""
    for kind in KINDS:
        yield from kind.pictures(view)


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Draws every picture of every machine.

    Args:
        folder: exists; a file MACHINE-PICTURE.png each.

    Returns:
        their absolute paths.
    """
    with style():
        return [
            save_png(picture.draw(), folder / f"{picture.name}.png")
            for view in views(results)
            for picture in pictures(view)
        ]
