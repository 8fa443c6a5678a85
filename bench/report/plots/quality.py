"""Accuracy against forward passes: a panel a decoder, its curve before all the others'."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ...harness.results import OURS, Record
from ..views import View, grouped
from .picture import Picture, file_name
from .style import FAINT, GREY, OURS_COLOUR, PAGE, finish, new_figure

COLUMNS = 4


def pictures(view: View) -> Iterator[Picture]:
    """One a task."""
    for task, records in grouped(view.suite("quality"), lambda record: str(record.case.get("task", ""))).items():
        curves = {
            decoder: points
            for decoder, chosen in grouped(records, lambda record: str(record.case.get("decoder", ""))).items()
            if (points := curve(chosen))
        }
        if curves:
            title = f"Accuracy against forward passes: {task}"
            puzzles = sorted({found for _, found in _puzzles(records)})
            caption = (
                f"Share of {' or '.join(f'{count:,}' for count in puzzles) or 'the'} held-out puzzles solved by the "
                "built-in model, over the forward passes a puzzle needs, with 95% intervals. A panel a decoder, the "
                "others' curves in grey behind it; up and left is better."
            )
            yield Picture(
                file_name(view, f"quality-{task}"), "quality", title, caption, draw(title, curves, view.machine)
            )


def _puzzles(records: Sequence[Record]) -> list[tuple[str, int]]:
    sides = [record.sides[OURS] for record in records if OURS in record.sides]
    return [("puzzles", side.figures["puzzles"]) for side in sides if "puzzles" in side.figures]


def curve(records: Sequence[Record]) -> list[tuple[float, float, float, float]]:
    """Passes, accuracy and its interval in per cent, ascending in passes."""
    points = []
    for record in records:
        found = record.sides[OURS].figures if OURS in record.sides else {}
        if "accuracy" in found and "forwards" in found:
            middle = found["accuracy"]
            ends = found.get("accuracy_low", middle), found.get("accuracy_high", middle)
            points.append((float(found["forwards"]), 100 * middle, 100 * ends[0], 100 * ends[1]))
    return sorted(points)


def draw(title: str, curves: dict[str, list[tuple[float, float, float, float]]], machine: str) -> Callable[[], Figure]:
    """Small multiples, all with the same axes."""

    def drawn() -> Figure:
        columns = min(COLUMNS, len(curves))
        lines = -(-len(curves) // columns)
        figure, panels = new_figure(lines, columns, PAGE, 0.8 + 1.55 * lines, sharex=True, sharey=True)
        passes = [point[0] for points in curves.values() for point in points]
        for axes in panels.flat[len(curves) :]:
            axes.set_visible(False)
        for index, (axes, decoder) in enumerate(zip(panels.flat, curves, strict=False)):
            for other, points in curves.items():
                if other != decoder:
                    axes.plot(*_xy(points), ".-", color=FAINT, linewidth=0.9, markersize=2.5, zorder=1)
            _highlight(axes, curves[decoder])
            axes.set_title(decoder)
            if index + columns >= len(curves):
                axes.tick_params(axis="x", labelbottom=True)
        first = panels.flat[0]
        first.set_xscale("log")
        first.set_xlim(min(passes) / 1.25, max(passes) * 1.25)
        ticks = [2**power for power in range(10) if min(passes) / 1.25 <= 2**power <= max(passes) * 1.25]
        first.set_xticks(ticks, [str(tick) for tick in ticks])
        first.xaxis.set_minor_locator(NullLocator())
        first.set_ylim(0, 103)
        figure.supylabel("puzzles solved (%)", fontsize=8)
        for axes in panels[-1]:
            axes.set_xlabel("forward passes a puzzle")
        return finish(figure, title, machine)

    return drawn


def _xy(points: Sequence[tuple[float, float, float, float]]) -> tuple[list[float], list[float]]:
    return [point[0] for point in points], [point[1] for point in points]


def _highlight(axes: Axes, points: Sequence[tuple[float, float, float, float]]) -> None:
    x, y = _xy(points)
    below = [middle - low for _, middle, low, _ in points]
    above = [high - middle for _, middle, _, high in points]
    axes.errorbar(x, y, [below, above], fmt="o-", color=OURS_COLOUR, elinewidth=1, capsize=2, zorder=3)
    axes.grid(color=FAINT, alpha=0.6)
    axes.axhline(100, color=GREY, linewidth=0.5)
