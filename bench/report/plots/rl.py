"""Training: seconds of an iteration by phase and peak memory, ours against the released way, along each axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

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


def pictures(view: View) -> Iterator[Picture]:
    """One a method and head that has an axis."""
    for label, records in grouped(view.suite("rl"), work).items():
        lines = {axis: line for axis in TRAINING_AXES if (line := along(records, axis))}
        if lines:
            title = f"{label}: seconds by phase, peak memory"
            caption = (
                "Along each axis, the others at the centre: the left bar of a pair is ours, the right one the "
                "released way. Above: median seconds of an iteration, split by phase where it was recorded. Below: "
                "the most memory in use beyond the model. ~ marks what is extrapolated."
            )
            name = file_name(view, f"rl-phases-{label}")
            yield Picture(name, "rl", title, caption, draw(title, lines, view.machine))


def draw(title: str, lines: dict[str, list[Record]], machine: str) -> Callable[[], Figure]:
    """A column an axis."""

    def drawn() -> Figure:
        figure, panels = new_figure(2, len(lines), PAGE if len(lines) > 1 else NARROW, 4.4, sharey="row")
        phases = phase_names([record for records in lines.values() for record in records])
        for column, (axis, records) in enumerate(lines.items()):
            _bars(panels[0, column], records, axis, phases)
            _memory(panels[1, column], records, axis)
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


def _places(records: Sequence[Record]) -> Iterator[tuple[float, str, Record]]:
    """Where the bar of each side stands."""
    for index, record in enumerate(records):
        names = _names(record)
        for offset, name in enumerate(names):
            yield index + 0.42 * (offset - (len(names) - 1) / 2), name, record


def _bars(axes: Axes, records: Sequence[Record], axis: str, phases: Sequence[str]) -> None:
    for place, name, record in _places(records):
        side = record.sides[name]
        found = side.figures.get("phases") or {}
        bottom = 0.0
        for index, phase in enumerate(phases):
            if phase in found:
                axes.bar(place, found[phase], 0.38, bottom, color=PARTS[index % len(PARTS)])
                bottom += found[phase]
        if side.seconds:
            if not found:
                axes.bar(place, side.seconds.median, 0.38, color=system(name)[0])
            top = max(bottom, side.seconds.median)
            mark = "~" if side.extrapolated_from else ""
            text = f"{'ours' if name == OURS else 'rel.'}\n{mark}{wording.significant(side.seconds.median, 2)}"
            axes.annotate(
                text, (place, top), (0, 2), textcoords="offset points", ha="center", va="bottom", linespacing=1
            )
    _sizes(axes, records, axis)


def _memory(axes: Axes, records: Sequence[Record], axis: str) -> None:
    for place, name, record in _places(records):
        peak = record.sides[name].peak_bytes
        if peak is not None:
            colour = OURS_COLOUR if name == OURS else system(name)[0]
            axes.bar(place, peak / 1e9, 0.38, color=colour)
            text = wording.significant(peak / 1e9, 2)
            axes.annotate(text, (place, peak / 1e9), (0, 2), textcoords="offset points", ha="center", va="bottom")
    _sizes(axes, records, axis)


def _sizes(axes: Axes, records: Sequence[Record], axis: str) -> None:
    axes.set_xticks(range(len(records)), [f"{record.case[axis]:g}" for record in records])
    axes.tick_params(axis="x", length=0)
    axes.margins(y=0.2)
    axes.grid(axis="y")
