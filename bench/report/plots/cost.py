"""Cost against size: lines of seconds, with the exponents that fit them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ...harness.results import OURS, Record
from .. import wording
from ..derived import Fit, baselines, fit
from ..tables_kernels import by_variant
from ..views import View, along, grouped
from .picture import Picture, file_name
from .style import COLUMN, PAGE, PAPER, finish, legend, new_figure, plain_ticks, system

TRAINING_AXES = ("steps", "batch", "generated", "updates")
LABEL_SHARE = 0.15  # of an axis lies at least between two labels
CAPTION = (
    "Medians with quartiles; both axes are logarithmic. The dashed line is the fit cost ~ size^b over the sizes bound "
    "by work; b stands beside the line with its standard error (none where there are two sizes alone). Hollow: "
    "extrapolated."
)


@dataclass(frozen=True)
class Line:
    """A panel: seconds along an axis.

    Attributes:
        label: what the records have in common.
        records: along the axis, at least two.
    """

    label: str
    axis: str
    records: list[Record]


def pictures(view: View) -> Iterator[Picture]:
    """One an op of the kernel suite, but committing and remasking together; one of decoding, one of training."""
    kernels = [record for _, _, chosen in by_variant(view.suite("kernels")) for record in chosen]
    for name, records in grouped(kernels, _subject).items():
        yield from _picture(view, "kernels", name, f"{name}: cost against size", records, ("rows", "vocab", "length"))
    title = "A whole decode: cost against length and vocabulary"
    yield from _picture(view, "decode", "decode", title, view.suite("decode"), ("generated", "vocab"))
    title = "An iteration of training: cost against size"
    yield from _picture(view, "rl", "iteration", title, view.suite("rl"), TRAINING_AXES)


def _subject(record: Record) -> str:
    op = str(record.case.get("op"))
    return "select_commit_ and remask_" if op in ("select_commit_", "remask_") else op


def _picture(
    view: View, suite: str, name: str, title: str, records: Sequence[Record], axes: Sequence[str]
) -> Iterator[Picture]:
    """A panel a variant and axis along which at least two sizes were measured."""
    lines = [
        Line(label, axis, line)
        for label, chosen in grouped(records, _label).items()
        for axis in axes
        if (line := along(chosen, axis))
    ]
    if lines:
        file = file_name(view, f"{suite}-cost-{name}")
        yield Picture(file, suite, title, CAPTION, draw(title, lines, view.machine))


def _label(record: Record) -> str:
    """What the lines of one op, decoder or way of training have in common."""
    case = record.case
    if record.suite == "decode":
        return f"as {case.get('decoder', '')}"
    if record.suite == "rl":
        return f"{case.get('method', '')}, {case['head']} head" if "head" in case else str(case.get("method", ""))
    variant = str(case.get("variant", ""))
    return f"{case['op']}, {variant}" if _subject(record) != case["op"] else variant


def draw(title: str, lines: Sequence[Line], machine: str) -> Callable[[], Figure]:
    """Panels, two beside each other."""

    def drawn() -> Figure:
        columns = min(2, len(lines))
        rows = -(-len(lines) // columns)
        figure, panels = new_figure(rows, columns, PAGE if columns > 1 else COLUMN + 0.6, 0.7 + 2.5 * rows)
        for axes in panels.flat[len(lines) :]:
            axes.set_visible(False)
        for axes, line in zip(panels.flat, lines, strict=False):
            _panel(axes, line.records, line.axis)
            axes.set_title("\n".join(filter(None, (line.label, _fixed(line.records, line.axis)))))
        for axes in panels[:, 0]:
            axes.set_ylabel("time")
        legend(figure, *panels.flat)
        return finish(figure, title, machine)

    return drawn


def _fixed(records: Sequence[Record], axis: str) -> str:
    """The numbers that stay the same along the line."""
    shown = ("dtype", "rows", "vocab", "hidden", "batch", "generated", "layout", "temperature", "steps", "updates")
    case = {
        name: found
        for name, found in records[0].case.items()
        if name in shown and name != axis and all(record.case.get(name) == found for record in records)
    }
    return wording.described(case)


def _panel(axes: Axes, records: Sequence[Record], axis: str) -> None:
    labels = []
    names = [OURS, *dict.fromkeys(name for record in records for name in baselines(record))]
    for name in names:
        found = [(record.case[axis], record.sides[name]) for record in records if name in record.sides]
        points = [(size, side.seconds, bool(side.extrapolated_from)) for size, side in found if side.seconds]
        if not points:
            continue
        colour, marker = system(name)
        sizes = [float(size) for size, _, _ in points]
        medians = [seconds.median for _, seconds, _ in points]
        line = fit(sizes, medians)
        labels.append((medians[-1], exponent(line), colour))
        low = [seconds.median - seconds.low for _, seconds, _ in points]
        high = [seconds.high - seconds.median for _, seconds, _ in points]
        axes.errorbar(sizes, medians, [low, high], color=colour, marker=marker, label=name, capsize=0, elinewidth=2.5)
        hollow = [(size, seconds.median) for size, seconds, whole in points if whole]
        axes.plot(*np.reshape(hollow, (-1, 2)).T, marker, color=colour, markerfacecolor=PAPER, zorder=3)
        if line is not None:
            ends = np.array([line.first, line.last])
            axes.plot(ends, line.scale * ends**line.exponent, "--", color=colour, linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel=wording.heading(axis))
    sizes = [record.case[axis] for record in records]
    labelled = spaced(sizes)
    axes.set_xticks(labelled, [_short(size) for size in labelled])
    axes.set_xticks([size for size in sizes if size not in labelled], minor=True)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.08)
    plain_ticks(axes.yaxis, _duration)
    axes.grid(which="major")
    _beside(axes, labels)


def _duration(value: float) -> str:
    """A tick's label: "20 µs", "1 ms", "5 s"."""
    factor, unit = wording.second_unit(value * 1.000001)
    return f"{value * factor:g} {unit}"


def exponent(line: Fit | None) -> str:
    """Of a fit, with its standard error."""
    if line is None:
        return ""
    if line.error is None:
        return f"b = {line.exponent:.2f}"
    return f"b = {line.exponent:.2f} ± " + (f"{line.error:.2f}" if line.error >= 0.005 else "<0.01")


def spaced(sizes: Sequence[float]) -> list[float]:
    """Sizes whose labels do not touch on a logarithmic axis: the largest, then each far enough below."""
    kept: list[float] = []
    length = math.log(max(sizes) / min(sizes))
    for size in sorted(sizes, reverse=True):
        if not kept or math.log(kept[-1] / size) >= LABEL_SHARE * length:
            kept.append(size)
    return kept[::-1]


def _beside(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Texts right of the lines' ends, (height, text, colour), moved apart where they would touch."""
    low, high = np.log(axes.get_ylim())
    line = 0.085  # a text's height as a share of the panel's
    top = 1.0 + line
    for at, text, colour in sorted(labels, reverse=True):
        share = float((np.log(at) - low) / (high - low))
        top = min(share, top - line)
        axes.annotate(text, (1.02, top), xycoords="axes fraction", va="center", color=colour, annotation_clip=False)


def _short(size: float) -> str:
    """A tick's label: 126,464 becomes 126k."""
    return f"{size / 1000:.0f}k" if size >= 1000 else f"{size:g}"
