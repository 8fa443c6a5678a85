"""Tables of training: an iteration's seconds and memory against the released way, and by phase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..harness.results import OURS, Record, Side
from . import wording
from .derived import baselines
from .tables import (
    Column,
    Entry,
    Table,
    against,
    case_columns,
    case_entries,
    case_heads,
    check_note,
    mark,
    notes,
    own_seconds,
    peak,
    seconds,
    side_names,
)
from .views import grouped


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """Two a method: the whole iteration, then its phases."""
    for method, chosen in grouped(records, lambda record: str(record.case.get("method", ""))).items():
        yield iteration_table(method, chosen)
        if any(side.figures.get("phases") for record in chosen for side in record.sides.values()):
            yield phase_table(method, chosen)


def iteration_table(method: str, records: Sequence[Record]) -> Table:
    """Seconds and peak memory of an iteration."""
    names, constant = case_columns(records, ("method",))
    others = side_names(records, (name for record in records for name in baselines(record)))
    heads = [*case_heads(names, records), Column("ours", hint="median and quartiles"), Column("ours, peak memory")]
    for name in others:
        heads += [Column(name), Column("its peak memory"), Column("ratio", hint=f"time of {name} over ours")]
    rows = []
    for record in records:
        row = [*case_entries(names, record), own_seconds(record), peak(record.sides.get(OURS))]
        for name in others:
            side = record.sides.get(name)
            row += [seconds(side.seconds, mark(side)) if side else Entry(), peak(side), against(side, with_peak=False)]
        rows.append(row)
    below = [*notes(records), check_note(records)]
    return Table(f"{method}: an iteration", heads, rows, constant, [line for line in below if line])


def phase_table(method: str, records: Sequence[Record]) -> Table:
    """Seconds by phase, a row a side."""
    names, constant = case_columns(records, ("method",))
    rows, phases = [], phase_names(records)
    for record in records:
        for name, side in record.sides.items():
            if side.figures.get("phases"):
                rows.append([*case_entries(names, record), Entry(name, key=name), *phase_entries(side, phases)])
    heads = [*case_heads(names, records), Column("side", False), *(Column(phase) for phase in phases)]
    return Table(f"{method}: seconds by phase", heads, rows, constant)


def phase_names(records: Sequence[Record]) -> list[str]:
    """Phases of any side, in the order in which they are run."""
    return list(
        dict.fromkeys(
            phase for record in records for side in record.sides.values() for phase in side.figures.get("phases", {})
        )
    )


def phase_entries(side: Side, phases: Sequence[str]) -> list[Entry]:
    """A side's seconds in each phase with their share of the iteration."""
    found = side.figures["phases"]
    total = sum(found.values()) or 1.0
    return [
        Entry(mark(side) + wording.seconds(found[phase]), (wording.percent(found[phase] / total),), found[phase])
        if phase in found
        else Entry()
        for phase in phases
    ]
