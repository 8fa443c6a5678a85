"""Roofline: useful operations a second over operations a byte, below the roofs measured in the same run.

The model is of S. Williams, A. Waterman and D. Patterson, Commun. ACM 52 (4), 2009.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...harness.results import CEILING, OURS, Record
from .. import wording
from ..derived import baselines, gb_per_s, gflop_per_s, intensity
from ..tables_kernels import by_variant
from ..views import View, centre, grouped
from .picture import Picture, file_name
from .style import COLUMN, GREY, INK, OURS_COLOUR, PAGE, PAPER, finish, legend, new_figure, system

OPS = {
    "score_rows": "o",
    "score_partials": "h",
    "linear_score_rows": "s",
    "token_logprobs": "^",
    "linear_token_logprobs": "D",
}


def pictures(view: View) -> Iterator[Picture]:
    """One, a panel a dtype that has a roof and points."""
    records = view.suite("kernels")
    panels = {}
    for dtype in wording.DTYPES:
        roof, points = roofs(records, dtype), chosen(records, dtype)
        if roof is not None and points:
            panels[dtype] = (roof, points)
    if panels:
        title = "Roofline: useful arithmetic against the machine's limits"
        caption = (
            "Lines: bandwidth of reading memory and rate of the library's matrix product, both measured in this run "
            "with all threads. Filled: ours; hollow: baselines doing the same useful work; each shape is an op, the "
            "central cell of each variant and, for ops with the LM head, every number of rows. Operations and bytes "
            "are those of the useful work (an exponential is one); what a baseline does beyond shows as a lower point."
        )
        yield Picture(file_name(view, "kernels-roofline"), "kernels", title, caption, draw(title, panels, view.machine))


def roofs(records: Sequence[Record], dtype: str) -> tuple[float, float] | None:
    """GB/s of reading and GFLOP/s of products, with the most threads; None where either was not measured."""
    found: dict[str, tuple[int, float]] = {}
    for record in records:
        if CEILING in record.sides and record.case.get("dtype", dtype) == dtype:
            rate = gb_per_s(record, CEILING) if record.case["op"] == "read" else gflop_per_s(record, CEILING)
            if rate is not None:
                best = (int(record.case["threads"]), rate)
                found[record.case["op"]] = max(best, found.get(record.case["op"], best))
    if {"read", "matrix product"} - set(found):
        return None
    return found["read"][1], found["matrix product"][1]


def chosen(records: Sequence[Record], dtype: str) -> list[Record]:
    """Cells with bytes and operations: the central one of each variant, of linear ops all numbers of rows."""
    found: list[Record] = []
    for op, _, cells in by_variant([record for record in records if record.case.get("dtype") == dtype]):
        cells = [record for record in cells if op in OPS and intensity(record) and gflop_per_s(record)]
        if cells:
            middle = centre(cells).case
            fixed = {name: value for name, value in middle.items() if name != "rows" or not op.startswith("linear")}
            found += [record for record in cells if fixed.items() <= record.case.items()]
    return found


def draw(title: str, panels: dict[str, tuple[tuple[float, float], list[Record]]], machine: str) -> Callable[[], Figure]:
    """Panels side by side."""

    def drawn() -> Figure:
        width = COLUMN + 0.6 if len(panels) == 1 else PAGE
        figure, [all_axes] = new_figure(1, len(panels), width, 3.6, sharey=True)
        for axes, (dtype, (roof, points)) in zip(all_axes, panels.items(), strict=True):
            _panel(axes, roof, points)
            axes.set_title(wording.DTYPES[dtype])
            axes.set_xlabel("useful operations a byte")
        all_axes[0].set_ylabel("GFLOP/s")
        _key(all_axes[0], [record for _, points in panels.values() for record in points])
        legend(figure, all_axes[0], columns=2 if len(panels) == 1 else 3)
        return finish(figure, title, machine)

    return drawn


def _panel(axes: Axes, roof: tuple[float, float], points: Sequence[Record]) -> None:
    bandwidth, rate = roof
    intensities = [found for record in points if (found := intensity(record))]
    low = min(*intensities, rate / bandwidth) / 3
    high = max(*intensities, rate / bandwidth) * 4
    x = np.geomspace(low, high, 200)
    axes.loglog(x, np.minimum(bandwidth * x, rate), color=INK, linewidth=1.2)
    axes.annotate(
        f"{wording.significant(rate)} GFLOP/s",
        (high, rate),
        (-2, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
    )
    axes.text(
        1.15 * low,
        1.5 * bandwidth * low,
        f"read {wording.significant(bandwidth)} GB/s",
        rotation=math.degrees(math.atan(1.5 / 1.15 * bandwidth)),  # a direction in the data's coordinates
        rotation_mode="anchor",
        transform_rotates_text=True,
    )
    for record, at in zip(points, intensities, strict=True):
        for name in (*baselines(record), OURS):
            found = gflop_per_s(record, name)
            if found is not None:
                colour = system(name)[0]
                face = colour if name == OURS else PAPER
                axes.plot(at, found, OPS[record.case["op"]], color=colour, markerfacecolor=face, markersize=5.5)
    axes.grid(which="major")
    axes.set_xlim(low, high)


def _key(axes: Axes, points: Sequence[Record]) -> None:
    """Legend: shapes are ops, colours are systems."""
    for op in grouped(points, lambda record: record.case["op"]):
        axes.plot([], [], OPS[op], color=GREY, label=op)
    axes.plot([], [], "o", color=OURS_COLOUR, label="ours (filled)")
    for name in dict.fromkeys(name for record in points for name in baselines(record)):
        axes.plot([], [], "o", color=system(name)[0], markerfacecolor=PAPER, label=name)
