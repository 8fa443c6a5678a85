"""Whole decodes: throughput and time outside the model a system, latency and throughput over the batch."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from ...harness.results import OURS, Record, Side
from .. import wording
from ..derived import baselines, loses
from ..tables import SLOWER, against
from ..tables_decode import cache_note
from ..views import View, along, centre, grouped
from .picture import Picture, file_name
from .style import COLUMN, GREY, INK, OURS_COLOUR, PAGE, PAPER, finish, legend, new_figure, plain_ticks, system


def pictures(view: View) -> Iterator[Picture]:
    """Two, as far as there are figures for them."""
    records = [record for record in view.suite("decode") if "decoder" in record.case]
    without_cache = cache_note(record.case["decoder"] for record in records)
    central = [centre(chosen) for chosen in grouped(records, lambda record: record.case["decoder"]).values()]
    central.sort(key=lambda record: -max((side.ratio.median for _, side in _sides(record) if side.ratio), default=0.0))
    if central:
        title = "Decoding: tokens a second, and time outside the model"
        caption = (
            "Each row is a published decoder, run as its authors wrote it (hollow) and by ours with the same tokens "
            "(filled), in the cell where the axes cross; the batch and the length stand beside the name. Left: "
            "generated tokens a second of the whole batch, ~ where a step stands for the decode. Right: share of a "
            f"step spent outside the model's body, from a watched decode. {without_cache}"
        )
        yield Picture(
            file_name(view, "decode-systems"), "decode", title, caption, draw_systems(title, central, view.machine)
        )
    lines = {
        decoder: line
        for decoder, chosen in grouped(records, lambda record: record.case["decoder"]).items()
        if (line := along(chosen, "batch"))
    }
    if lines:
        title = "Decoding: latency and throughput over the batch"
        caption = (
            "Latency is the time of a whole batch, throughput its generated tokens a second; medians. "
            f"Filled: ours; hollow: the published decoder that the panel names. {without_cache}"
        )
        yield Picture(
            file_name(view, "decode-batch"), "decode", title, caption, draw_batches(title, lines, view.machine)
        )


def _sides(record: Record) -> list[tuple[str, Side]]:
    """The baseline first, so that ours is drawn above it."""
    return [*baselines(record).items(), *((name, side) for name, side in record.sides.items() if name == OURS)]


def draw_systems(title: str, records: Sequence[Record], machine: str) -> Callable[[], Figure]:
    """A row a system: both sides' tokens a second, and their shares outside the model."""

    def drawn() -> Figure:
        shares = any("outside_share" in side.figures for record in records for _, side in _sides(record))
        figure, [panels] = new_figure(
            1, 1 + shares, PAGE, 1.2 + 0.34 * len(records), sharey=True, width_ratios=[1.25, 1][: 1 + shares]
        )
        for y, record in enumerate(records):
            _pair(panels[0], y, record, "tokens_per_second")
            if shares:
                _pair(panels[1], y, record, "outside_share")
        labels = [f"{record.case['decoder']}\n{_cell(record)}" for record in records]
        panels[0].set_yticks(range(len(records)), labels)
        panels[0].set_ylim(len(records) - 0.5, -0.6)
        panels[0].set_xscale("log")
        low, high = panels[0].get_xlim()
        panels[0].set_xlim(low / 1.3, high * 2.6)
        plain_ticks(panels[0].xaxis)
        panels[0].set_xlabel("generated tokens a second")
        if shares:
            panels[1].set_xlim(0, 1)
            panels[1].xaxis.set_major_formatter(FuncFormatter(lambda x, _: wording.percent(x)))
            panels[1].set_xlabel("share of a step outside the model")
        for axes in panels:
            axes.grid(axis="x")
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
        panels[0].plot([], [], "o", color=OURS_COLOUR, label="ours")
        panels[0].plot([], [], "o", color=GREY, markerfacecolor=PAPER, label="as published")
        legend(figure, panels[0])
        return finish(figure, title, machine)

    return drawn


def _cell(record: Record) -> str:
    names = ("layout", "batch", "generated", "temperature")
    return wording.described({name: record.case[name] for name in names if name in record.case})


def _pair(axes: Axes, y: int, record: Record, figure: str) -> None:
    """Both sides' figure, joined by a line; the factor between speeds beside the right one."""
    found = {name: side.figures[figure] for name, side in _sides(record) if side.figures.get(figure) is not None}
    if not found:
        return
    axes.plot([min(found.values()), max(found.values())], [y, y], color=GREY, linewidth=1, zorder=1)
    for name, value in found.items():
        colour, marker = (OURS_COLOUR, "o") if name == OURS else system(name)
        axes.plot(value, y, marker, color=colour, markerfacecolor=colour if name == OURS else PAPER, markersize=6)
    compared = next((side for _, side in _sides(record) if side.ratio is not None), None)
    if figure == "tokens_per_second" and compared is not None:
        text = against(compared).text + (f" {SLOWER}" if loses(compared) else "")
        at = (max(found.values()), y)
        axes.annotate(text, at, (7, 0), textcoords="offset points", va="center", color=INK)


def draw_batches(title: str, lines: dict[str, list[Record]], machine: str) -> Callable[[], Figure]:
    """Latency above, throughput below; a column a decoder, all on the same axes."""

    def drawn() -> Figure:
        width = PAGE if len(lines) > 2 else COLUMN
        figure, panels = new_figure(2, len(lines), width, 3.9, sharex="col", sharey="row")
        for (latency, throughput), (decoder, records) in zip(panels.T, lines.items(), strict=True):
            _over_batch(latency, records, "latency_seconds")
            _over_batch(throughput, records, "tokens_per_second")
            latency.set_title(textwrap.fill(decoder.replace("/", "/ "), 14).replace("/ ", "/"))
            throughput.set_xlabel("batch")
        panels[0, 0].set_ylabel("seconds a batch")
        panels[1, 0].set_ylabel("tokens a second")
        panels[0, 0].plot([], [], "o-", color=OURS_COLOUR, label="ours")
        panels[0, 0].plot([], [], "o-", color=GREY, markerfacecolor=PAPER, label="as published")
        legend(figure, panels[0, 0])
        return finish(figure, title, machine)

    return drawn


def _over_batch(axes: Axes, records: Sequence[Record], figure: str) -> None:
    for name in dict.fromkeys(name for record in records for name, _ in _sides(record)):
        points = [
            (record.case["batch"], record.sides[name].figures[figure])
            for record in records
            if name in record.sides and record.sides[name].figures.get(figure) is not None
        ]
        if points:
            colour, marker = (OURS_COLOUR, "o") if name == OURS else system(name)
            face = colour if name == OURS else PAPER
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markerfacecolor=face)
    axes.set(xscale="log", yscale="log")
    batches = [record.case["batch"] for record in records]
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.set_minor_locator(NullLocator())
    plain_ticks(axes.yaxis)
    axes.margins(0.12)
    axes.grid(which="major")
