"""Dot plots: ratio to each baseline, and what a second thread gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...harness.results import Record, Side
from ...harness.spread import Spread
from .. import wording
from ..derived import ONE_THREAD, loses
from ..summary import comparisons, ordered, work
from ..views import View, centre, grouped
from .picture import Picture, file_name
from .style import GREY, INK, LOSS, OURS_COLOUR, PAGE, finish, new_figure, plain_ticks, system

TITLES = {
    "kernels": "Kernels: time of each baseline over ours",
    "decode": "Whole decodes: time of each baseline over ours",
    "rl": "Training: time of an iteration as released over ours",
}


@dataclass(frozen=True)
class Row:
    """A line of a dot plot.

    Attributes:
        group: rows of one group stand together below its name.
        label: beside the line.
        middle: median and quartiles in the central cell.
        low, high: medians of all cells lie between.
        colour, marker: of the dot.
        loss: the median is below 1.
    """

    group: str
    label: str
    middle: Spread
    low: float
    high: float
    colour: str
    marker: str
    loss: bool = False


def pictures(view: View) -> Iterator[Picture]:
    """One a suite that compares, and one of the threads."""
    for suite, title in TITLES.items():
        rows = ratio_rows(view.suite(suite))
        if rows:
            caption = (
                "Each row is a baseline; right of 1, ours is faster. Dot and thick whisker: median and quartiles of "
                "ratios paired by round, in the cell where the axes cross. Thin line: medians of all measured cells. "
                "Both stand in figures on the right. Hollow red diamonds: ours is slower."
            )
            yield Picture(
                file_name(view, f"{suite}-ratios"), suite, title, caption, draw_ratios(title, rows, view.machine)
            )
    scaling = scaling_rows(view.suite("kernels"))
    if scaling:
        title = f"Speed-up from 1 to {view.threads} threads"
        caption = (
            f"Time with one thread over time with {view.threads}, paired by round: median and quartiles in the "
            f"central cell, thin line over all cells. The dashed line is the ideal, {view.threads}."
        )
        name = file_name(view, "kernels-threads")
        yield Picture(name, "kernels", title, caption, draw_scaling(title, scaling, view.machine, view.threads))


def ratio_rows(records: Sequence[Record]) -> list[Row]:
    """A row a kind of work and baseline."""
    rows = []
    for found in comparisons(records):
        middle = found.central.ratio
        assert middle is not None
        colour, marker = system(found.baseline)
        ends = min(found.ratios), max(found.ratios)
        rows.append(Row(found.work, found.baseline, middle, *ends, colour, marker, loses(found.central)))
    return rows


def scaling_rows(records: Sequence[Record]) -> list[Row]:
    """A row an op and variant that was timed with one thread."""
    rows = []
    having = [record for record in records if ONE_THREAD in record.sides and record.sides[ONE_THREAD].ratio]
    for name, chosen in grouped(ordered(having), work).items():
        ratios = [_ratio(record.sides[ONE_THREAD]) for record in chosen]
        medians = [ratio.median for ratio in ratios]
        middle = _ratio(centre(chosen).sides[ONE_THREAD])
        rows.append(Row("", name, middle, min(medians), max(medians), OURS_COLOUR, "o"))
    return rows


def _ratio(side: Side) -> Spread:
    assert side.ratio is not None
    return side.ratio


def draw_ratios(title: str, rows: Sequence[Row], machine: str) -> Callable[[], Figure]:
    """On a logarithmic axis, 1 marked."""

    def draw() -> Figure:
        figure, axes = _dots(rows)
        axes.set_xscale("log")
        low = min(1.0, *(row.low for row in rows))
        high = max(1.0, *(row.high for row in rows), *(row.middle.high for row in rows))
        axes.set_xlim(min(0.7, 0.8 * low), max(2.0, 1.15 * high))
        axes.axvspan(axes.get_xlim()[0], 1, color=LOSS, alpha=0.07, linewidth=0, zorder=0)
        axes.axvline(1, color=INK, linewidth=0.8, zorder=1)
        plain_ticks(axes.xaxis)
        axes.set_xlabel("seconds of the baseline / seconds of ours (right of 1: ours is faster)")
        return finish(figure, title, machine)

    return draw


def draw_scaling(title: str, rows: Sequence[Row], machine: str, threads: int) -> Callable[[], Figure]:
    """On a linear axis, the ideal marked."""

    def draw() -> Figure:
        figure, axes = _dots(rows)
        high = max(float(threads), *(row.high for row in rows), *(row.middle.high for row in rows))
        axes.set_xlim(min(0.5, 0.9 * min(row.low for row in rows)), 1.12 * high)
        axes.axvline(1, color=INK, linewidth=0.8, zorder=1)
        axes.axvline(threads, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
        axes.set_xlabel(f"seconds with 1 thread / seconds with {threads}")
        return finish(figure, title, machine)

    return draw


def _dots(rows: Sequence[Row]) -> tuple[Figure, Axes]:
    """Rows from top to bottom, a heading above each group."""
    places: list[float] = []
    labels: list[str] = []
    headings: list[int] = []
    y = 0.0
    for index, row in enumerate(rows):
        if row.group and (index == 0 or rows[index - 1].group != row.group):
            y += 0.35 if index else 0.0
            headings.append(len(labels))
            places.append(y)
            labels.append(row.group)
            y += 1.0
        places.append(y)
        labels.append(row.label)
        y += 1.0
    figure, [[axes]] = new_figure(1, 1, PAGE, 1.0 + 0.165 * y)
    lines = [place for index, place in enumerate(places) if index not in headings]
    for place, row in zip(lines, rows, strict=True):
        colour = LOSS if row.loss else row.colour
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=0.9, alpha=0.55, solid_capstyle="butt")
        axes.plot([row.middle.low, row.middle.high], [place, place], color=colour, linewidth=3, solid_capstyle="butt")
        face = {"markerfacecolor": "none", "markeredgewidth": 1.3} if row.loss else {"markeredgecolor": "none"}
        axes.plot(row.middle.median, place, "D" if row.loss else row.marker, color=colour, markersize=5.5, **face)
        word = " slower" if row.loss else ""
        span = wording.times_range(row.low, row.high) if row.low < row.high else ""
        for text, x, ink in ((wording.times(row.middle.median) + word, 6, LOSS if row.loss else INK), (span, 68, GREY)):
            at = {"xy": (1, place), "xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
            axes.annotate(text, xytext=(x, 0), va="center", color=ink, annotation_clip=False, **at)
    axes.set_yticks(places, labels)
    for index in headings:
        axes.get_yticklabels()[index].set_fontweight("bold")
    axes.set_ylim(y - 0.4, -0.7)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    return figure, axes
