"""What all pictures share: colours, sizes, titles, the machine's name, files."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

INK, GREY, FAINT, PAPER = "#1b1f24", "#68707c", "#d5d9e0", "#ffffff"
OURS_COLOUR, LOSS = "#0072b2", "#c1121f"
#: One colour and marker a system, everywhere. The first colours are Okabe and Ito's, which the colour-blind tell apart;
#: markers tell the rest apart.
SYSTEMS: dict[str, tuple[str, str]] = {
    "ours": (OURS_COLOUR, "o"),
    "LLaDA": ("#d55e00", "s"),
    "EOSER/CJ-GRPO rollout": ("#e69f00", "^"),
    "Fast-dLLM": ("#009e73", "D"),
    "dInfer, torch.compile": ("#cc79a7", "v"),
    "torch.compile, arranged": ("#b06090", "<"),
    "Dream": ("#56b4e9", "P"),
    "MDPO": ("#7a6a00", "X"),
    "TRL": ("#882255", "s"),
    "log_softmax + gather": ("#aa4499", "D"),
    "chunked linear cross-entropy": ("#999933", "^"),
    "library GEMM + ours": ("#4d4d4d", "v"),
    "library GEMM alone": ("#8f8f8f", "P"),
    "read": ("#8f8f8f", "_"),
    "CJ-GRPO as released": ("#e69f00", "^"),
    "CJ-GRPO as released, layers kept": ("#d55e00", "v"),
}
#: Steps of one colour, from dark to light, for parts of a whole.
PARTS = ("#0b3954", "#1f6f8b", "#5fa8a8", "#a9d1b8", "#e3ecc8", "#c9c9c9", "#7d6b91")
#: Dark backgrounds: what stands for a colour there.
ON_DARK = {
    INK: "#e8eaed",
    GREY: "#a3abb6",
    FAINT: "#3a4048",
    PAPER: "#16191d",
    OURS_COLOUR: "#4da3ff",
    LOSS: "#ff6b6b",
    "#d55e00": "#ff8a3d",
    "#e69f00": "#f5b83d",
    "#009e73": "#2ecc9b",
    "#cc79a7": "#e59ac4",
    "#b06090": "#cf7fb0",
    "#56b4e9": "#9adcff",
    "#7a6a00": "#c9b53c",
    "#882255": "#d0689b",
    "#aa4499": "#d886cb",
    "#999933": "#c2c25a",
    "#4d4d4d": "#c4c4c4",
    "#8f8f8f": "#9a9a9a",
    "#0b3954": "#3f88b5",
    "#c9c9c9": "#6b6b6b",
}
COLUMN, PAGE = 3.5, 7.2  # inches: one column of a paper, both
TITLE, FOOTER, LEGEND_LINE = 0.27, 0.2, 0.15  # inches

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "svg.fonttype": "path",
    "svg.hashsalt": "mdlm-fast",
}


@contextmanager
def style() -> Iterator[None]:
    """While figures are made and written."""
    with rc_context(RC):
        yield


def system(name: str) -> tuple[str, str]:
    """Colour and marker of a side."""
    return SYSTEMS.get(name, (GREY, "o"))


def new_figure(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    """A figure and its axes [rows, columns]; width and height in inches."""
    figure = Figure(figsize=(width, height), dpi=200)
    reserve(figure, TITLE)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def finish(figure: Figure, title: str, machine: str) -> Figure:
    """Title above to the left, the machine small below."""
    height = figure.get_figheight()
    figure.text(0.01, 1 - 0.06 / height, title, ha="left", va="top", fontsize=9.5, fontweight="bold")
    figure.text(0.99, 0.05 / height, machine, ha="right", va="bottom", fontsize=8, color=GREY)
    return figure


def plain_ticks(axis: Axis, text: Callable[[float], str] = "{:g}".format) -> None:
    """Labels 1, 2, 5, 10, ... on a logarithmic axis whose limits are set; powers of ten alone where it is long."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(10, (1, 2, 5) if high / low < 1000 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_formatter(NullFormatter())


def legend(figure: Figure, *panels: Axes, columns: int | None = None) -> None:
    """One legend between title and panels, each label once; in four columns, on a narrow figure in two."""
    columns = columns or (4 if figure.get_figwidth() == PAGE else 2)
    found: dict[str, Artist] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        found |= {label: handle for label, handle in zip(labels, handles, strict=True) if label not in found}
    height = figure.get_figheight()
    box = (0.0, 1 - TITLE / height)
    figure.legend(
        list(found.values()),
        list(found),
        loc="upper left",
        bbox_to_anchor=box,
        ncols=columns,
        borderaxespad=0.2,
        labelspacing=0.3,
    )
    lines = -(-len(found) // columns)
    reserve(figure, TITLE + 0.1 + LEGEND_LINE * lines)


def reserve(figure: Figure, above: float) -> None:
    """Keeps panels out of so many inches at the upper edge, and of the machine's name at the lower."""
    height = figure.get_figheight()
    inside = (0, FOOTER / height, 1, 1 - (FOOTER + above) / height)
    figure.set_layout_engine("constrained", w_pad=0.05, h_pad=0.05, rect=inside)


def svg(figure: Figure, prefix: str) -> str:
    """The figure as an SVG element for a page: its ids begin with `prefix`, its colours are variables of the page."""
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    for colour in ON_DARK:
        text = text.replace(colour, f"var({variable(colour)})")
    return text


def variable(colour: str) -> str:
    """The name that a page's style sheet gives a colour."""
    return f"--c{colour[1:]}"
