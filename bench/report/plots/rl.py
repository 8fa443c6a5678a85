"""Training: seconds of an iteration by phase and peak memory, ours against the released way, along each axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...harness.results import OURS, Record
from .. import wording
from ..derived import baselines
from ..summary import work
from ..tables_rl import phase_names
from ..views import View, along, grouped
from .cost import TRAINING_AXES
from .picture import Picture, file_name
from .style import OURS_COLOUR, PAGE, PARTS, finish, legend, new_figure, system

NARROW = 5.4  # inches
MOST_BARS = 24  # of all columns whose labels fit beside each other
GROUP = 0.84  # of the distance between two sizes belongs to the bars of one
#: Above bars; what is no system known here has its whole name.
SHORT = {OURS: "ours", "CJ-GRPO as released": "rel.", "CJ-GRPO as released, layers kept": "kept"}


def pictures(view: View) -> Iterator[Picture]:
    """One a method and head that has an axis."""
    for label, records in grouped(view.suite("rl"), work).items():
        lines = {axis: line for axis in TRAINING_AXES if (line := along(records, axis))}
        if lines:
            title = f"{label}: seconds by phase, peak memory"
            caption = (
                "Along each axis, the others at the centre: the left bar of a group is ours, the others the released "
                "way (kept: with the layers' results kept, as ours keeps them). Above: median seconds of an iteration, "
                "split by phase where it was recorded. Below: the most memory in use beyond the model. ~ marks what is "
                "extrapolated."
            )
            name = file_name(view, f"rl-phases-{label}")
            yield Picture(name, "rl", title, caption, draw(title, lines, view.machine))


def draw(title: str, lines: dict[str, list[Record]], machine: str) -> Callable[[], Figure]:
    """A column an axis."""

    def drawn() -> Figure:
        figure, panels = new_figure(2, len(lines), PAGE if len(lines) > 1 else NARROW, 4.4, sharey="row")
        phases = phase_names([record for records in lines.values() for record in records])
        bars = len(lines) * max(len(records) * max(map(_count, records)) for records in lines.values())
        rotation = 90 if bars > MOST_BARS else 0
        for column, (axis, records) in enumerate(lines.items()):
            _bars(panels[0, column], records, axis, phases, rotation)
            _memory(panels[1, column], records, axis, rotation)
            panels[1, column].set_xlabel(wording.heading(axis))
        panels[0, 0].set_ylabel("seconds an iteration")
        panels[1, 0].set_ylabel("peak memory, GB")
        for index, phase in enumerate(phases):
            panels[0, 0].bar(0, 0, color=PARTS[index % len(PARTS)], label=phase)
        names = dict.fromkeys(name for records in lines.values() for record in records for name in _names(record))
        for name in names:
            colour = OURS_COLOUR if name == OURS else system(name)[0]
            panels[1, 0].bar(0, 0, color=colour, label=f"{name} (memory)")
        legend(figure, panels[0, 0], panels[1, 0], columns=4)
        return finish(figure, title, machine)

    return drawn


def _names(record: Record) -> list[str]:
    return [name for name in (OURS, *baselines(record)) if name in record.sides]


def _count(record: Record) -> int:
    return len(_names(record))


def _places(records: Sequence[Record]) -> Iterator[tuple[float, float, str, Record]]:
    """Where the bar of each side stands, and how wide it is."""
    pitch = GROUP / max(map(_count, records))
    for index, record in enumerate(records):
        names = _names(record)
        for offset, name in enumerate(names):
            yield index + pitch * (offset - (len(names) - 1) / 2), 0.9 * pitch, name, record


def _bars(axes: Axes, records: Sequence[Record], axis: str, phases: Sequence[str], rotation: int) -> None:
    for place, width, name, record in _places(records):
        side = record.sides[name]
        found = side.figures.get("phases") or {}
        bottom = 0.0
        for index, phase in enumerate(phases):
            if phase in found:
                axes.bar(place, found[phase], width, bottom, color=PARTS[index % len(PARTS)])
                bottom += found[phase]
        if side.seconds:
            if not found:
                axes.bar(place, side.seconds.median, width, color=system(name)[0])
            top = max(bottom, side.seconds.median)
            mark = "~" if side.extrapolated_from else ""
            gap = " " if rotation else "\n"
            text = f"{SHORT.get(name, name)}{gap}{mark}{wording.significant(side.seconds.median, 2)}"
            _above(axes, place, top, text, rotation)
    _sizes(axes, records, axis, rotation)


def _memory(axes: Axes, records: Sequence[Record], axis: str, rotation: int) -> None:
    for place, width, name, record in _places(records):
        peak = record.sides[name].peak_bytes
        if peak is not None:
            colour = OURS_COLOUR if name == OURS else system(name)[0]
            axes.bar(place, peak / 1e9, width, color=colour)
            text = wording.significant(peak / 1e9, 2)
            _above(axes, place, peak / 1e9, text, rotation)
    _sizes(axes, records, axis, rotation)


def _above(axes: Axes, x: float, y: float, text: str, rotation: int) -> None:
    """A bar's label."""
    where = dict[str, Any](textcoords="offset points", ha="center", va="bottom")
    axes.annotate(text, (x, y), (0, 2), linespacing=1, rotation=rotation, **where)


def _sizes(axes: Axes, records: Sequence[Record], axis: str, rotation: int) -> None:
    axes.set_xticks(range(len(records)), [f"{record.case[axis]:g}" for record in records])
    axes.tick_params(axis="x", length=0)
    axes.margins(y=0.45 if rotation else 0.2)
    axes.grid(axis="y")
