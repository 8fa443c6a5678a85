"""Dot plots: ratio to each baseline, and what a second thread gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...harness.results import Record
from ...harness.spread import Spread
from .. import wording
from ..derived import loses, share_of_read, thread_scaling
from ..summary import comparisons, ordered, work
from ..tables import SLOWER, mark
from ..tables_decode import cache_note
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
        group: rows of one group stand together below its name; "": there are no groups.
        label: beside the line.
        middle: median and quartiles in the central cell.
        low, high: medians of all cells lie between.
        text, span: the median and what lies between low and high, on the right.
        colour, marker: of the dot.
        loss: ours is slower.
    """

    group: str
    label: str
    middle: Spread
    low: float
    high: float
    text: str
    span: str
    colour: str = OURS_COLOUR
    marker: str = "o"
    loss: bool = False


def pictures(view: View) -> Iterator[Picture]:
    """One a suite that compares; of the kernels also the share of read bandwidth, and what threads give."""
    for suite, title in TITLES.items():
        rows = ratio_rows(view.suite(suite))
        if rows:
            caption = (
                "Each row is a baseline; right of 1, ours is faster. Dot and thick whisker: median and quartiles of "
                "ratios paired by round, in the cell where the axes cross. Thin line: medians of all measured cells. "
                "Both stand in figures on the right. Hollow red diamonds: ours is slower. ~: extrapolated. The fastest "
                "baseline stands first."
            )
            if suite == "decode":
                caption += " " + cache_note(row.label for row in rows)
            yield Picture(
                file_name(view, f"{suite}-ratios"), suite, title, caption, draw_ratios(title, rows, view.machine)
            )
    shown = "median and quartiles in the central cell, thin line over all cells."
    limits = own_rows(view.suite("kernels"), share_of_read, wording.percent)
    if limits:
        title = "How near ours comes to merely reading its bytes"
        caption = f"Time of reading the op's bytes over time of ours, in the same rounds: {shown} 100% is the limit."
        label = "seconds of reading / seconds of ours"
        draw = draw_own(title, limits, view.machine, label, 1.0)
        yield Picture(file_name(view, "kernels-limit"), "kernels", title, caption, draw)
    scaling = own_rows(view.suite("kernels"), thread_scaling, wording.times)
    if scaling:
        title = f"Speed-up from 1 to {view.threads} threads"
        caption = f"Time with one thread over time with {view.threads}, in the same rounds: {shown} Dashed: the ideal."
        label = f"seconds with 1 thread / seconds with {view.threads}"
        draw = draw_own(title, scaling, view.machine, label, view.threads)
        yield Picture(file_name(view, "kernels-threads"), "kernels", title, caption, draw)


def ratio_rows(records: Sequence[Record]) -> list[Row]:
    """A row a kind of work and baseline."""
    rows = []
    for found in comparisons(records):
        side = found.central
        assert side.ratio is not None
        text = mark(side) + wording.times(side.ratio.median) + (f" {SLOWER}" if loses(side) else "")
        low, high = min(found.ratios), max(found.ratios)
        looks = (*system(found.baseline), loses(side))
        rows.append(
            Row(found.work, found.baseline, side.ratio, low, high, text, span(low, high, wording.times), *looks)
        )
    return rows


def own_rows(
    records: Sequence[Record], figure: Callable[[Record], Spread | None], text: Callable[[float], str]
) -> list[Row]:
    """A row an op and variant that has a figure."""
    rows = []
    for name, chosen in grouped(ordered([record for record in records if figure(record)]), work).items():
        spreads = {id(record): spread for record in chosen if (spread := figure(record))}
        medians = [spread.median for spread in spreads.values()]
        middle = spreads[id(centre(chosen))]
        low, high = min(medians), max(medians)
        rows.append(Row("", name, middle, low, high, text(middle.median), span(low, high, text)))
    return rows


def span(low: float, high: float, text: Callable[[float], str]) -> str:
    """E.g. "31–87%"; empty where the ends are one."""
    end = text(high)
    return f"{text(low).removesuffix(end[-1])}–{end}" if low < high else ""


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


def draw_own(title: str, rows: Sequence[Row], machine: str, label: str, ideal: float) -> Callable[[], Figure]:
    """From 0 on a linear axis, the ideal marked."""

    def draw() -> Figure:
        figure, axes = _dots(rows)
        high = max(ideal, *(row.high for row in rows), *(row.middle.high for row in rows))
        axes.set_xlim(0, 1.08 * high)
        axes.axvline(ideal, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
        axes.set_xlabel(label)
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
        for text, x, ink in ((row.text, 6, LOSS if row.loss else INK), (row.span, 68, GREY)):
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
