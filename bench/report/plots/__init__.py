"""Pictures of results: what there is to draw, its caption, and files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mdlm_fast.files import whole_file

from ...harness.results import Results
from ..views import View, views
from . import cost, decode, dots, heat, quality, rl, roofline
from .picture import Picture
from .style import style

#: Modules with `pictures(view)`, in the order in which a page shows what they draw.
KINDS = (dots, roofline, cost, heat, decode, quality, rl)

SOFTWARE = "mdlm-fast report"


def pictures(view: View) -> Iterator[Picture]:
    """All pictures of a machine's results, as far as they go; nothing is drawn yet."""
    for kind in KINDS:
        yield from kind.pictures(view)


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Draws every picture of every machine, and removes those of an earlier report that are not drawn again.

    Args:
        folder: exists; a file MACHINE-SUITE-PICTURE.png each.

    Returns:
        their absolute paths.
    """
    written = []
    with style():
        for view in views(results):
            for picture in pictures(view):
                written.append(folder.absolute() / f"{picture.name}.png")
                save(picture.draw(), written[-1])
    for path in folder.absolute().glob("*.png"):
        if path not in written and is_ours(path):
            path.unlink()
    return written


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG of 256 colours, a third of the size; its `Software` says that a report drew it."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    few = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    said = PngInfo()
    said.add_text("Software", SOFTWARE)
    with whole_file(path) as temporary:
        few.save(temporary, format="PNG", optimize=True, pnginfo=said, dpi=(figure.dpi, figure.dpi))


def is_ours(path: Path) -> bool:
    """Whether a report drew this PNG."""
    try:
        with Image.open(path) as found:
            return found.info.get("Software") == SOFTWARE
    except OSError:
        return False
