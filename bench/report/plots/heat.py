"""Heat maps of the full matrix: ratio to the best baseline over rows and vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ...harness.results import Record
from .. import wording
from ..derived import best_baseline
from ..tables_kernels import by_variant
from ..views import View, central_value, grouped
from .picture import Picture, file_name
from .style import PAGE, finish, new_figure

LEAST = 0.6  # of the cells of a map must have been measured: the small set's cross is no map


def pictures(view: View) -> Iterator[Picture]:
    """One an op whose rows and vocabularies were measured in all combinations."""
    variants = [(op, variant, _map(records)) for op, variant, records in by_variant(view.suite("kernels"))]
    for op, found in grouped_maps([(op, variant, cells) for op, variant, cells in variants if cells]).items():
        title = f"{op}: time of the best baseline over ours"
        caption = (
            "Each cell is the smallest of the ratios to the baselines, so the comparison that ours finds hardest; "
            "blue: ours is faster, red: slower. That baseline is named below it."
        )
        yield Picture(file_name(view, f"kernels-map-{op}"), "kernels", title, caption, draw(title, found, view.machine))


def grouped_maps(maps: Sequence[tuple[str, str, list[Record]]]) -> dict[str, dict[str, list[Record]]]:
    """Maps by op, then by variant."""
    found: dict[str, dict[str, list[Record]]] = {}
    for op, variant, cells in maps:
        found.setdefault(op, {})[variant] = cells
    return found


def _map(records: Sequence[Record]) -> list[Record]:
    """Records of a map; none where too few of its cells were measured."""
    having = [r for r in records if {"rows", "vocab"} <= set(r.case) and best_baseline(r)]
    if not having:
        return []
    fixed = {
        name: central_value(having, name)
        for name in ("dtype", "hidden")
        if any(name in record.case for record in having)
    }
    cells = [record for record in having if all(record.case.get(name) == value for name, value in fixed.items())]
    sizes = [len({record.case[name] for record in cells}) for name in ("rows", "vocab")]
    return cells if min(sizes) > 1 and len(cells) >= LEAST * sizes[0] * sizes[1] else []


def draw(title: str, maps: dict[str, list[Record]], machine: str) -> Callable[[], Figure]:
    """A panel a variant, two beside each other."""

    def drawn() -> Figure:
        lines = -(-len(maps) // 2)
        figure, panels = new_figure(lines, 2, PAGE, 0.7 + 2.3 * lines)
        for axes in panels.flat[len(maps) :]:
            axes.set_visible(False)
        for axes, (variant, records) in zip(panels.flat, maps.items(), strict=False):
            _panel(axes, records)
            dtype = wording.value("dtype", records[0].case.get("dtype", ""))
            axes.set_title(f"{variant}, {dtype}" if variant else dtype)
        return finish(figure, title, machine)

    return drawn


def _panel(axes: Axes, records: Sequence[Record]) -> None:
    rows = sorted({record.case["rows"] for record in records})
    vocabularies = sorted({record.case["vocab"] for record in records})
    cells = {at: found[0] for at, found in grouped(records, lambda r: (r.case["rows"], r.case["vocab"])).items()}
    ratios = np.full((len(rows), len(vocabularies)), np.nan)
    norm, colours = LogNorm(1 / 16, 16, clip=True), colormaps["RdBu"]
    for i, count in enumerate(rows):
        for j, width in enumerate(vocabularies):
            best = best_baseline(cells[count, width]) if (count, width) in cells else None
            if best is None:
                continue
            name, ratio = best
            ratios[i, j] = ratio.median
            ink = "white" if abs(float(norm(ratio.median)) - 0.5) > 0.3 else "black"
            text = f"{wording.times(ratio.median)}\n{initials(name)}"
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=ink, fontsize=8, linespacing=1.1)
    axes.pcolormesh(ratios, norm=norm, cmap=colours, edgecolors="white", linewidth=1)
    axes.set_xticks(np.arange(len(vocabularies)) + 0.5, [f"{width:,}" for width in vocabularies])
    axes.set_yticks(np.arange(len(rows)) + 0.5, [str(count) for count in rows])
    axes.tick_params(length=0)
    axes.set(xlabel="vocabulary V", ylabel="rows N")


def initials(name: str) -> str:
    """A baseline's name, short enough for a cell."""
    return name.partition(",")[0].partition("/")[0].partition(" +")[0][:12]
