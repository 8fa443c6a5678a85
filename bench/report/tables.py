"""A table as data, from which the terminal, Markdown and HTML each make their own; and what all tables share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..harness.results import OURS, Record, Side
from ..harness.spread import Spread
from . import wording
from .derived import loses
from .views import fields, varying

SLOWER = "slower"


@dataclass(frozen=True)
class Entry:
    """What stands in one place of a table.

    Attributes:
        text: the figure.
        details: smaller beside or below it: quartiles, peak memory.
        key: what a column is sorted by; None: behind all others.
        loss: ours is slower; the text is then followed by the word SLOWER.
        hint: shown when pointed at, where that is possible.
    """

    text: str = ""
    details: tuple[str, ...] = ()
    key: float | str | None = None
    loss: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Column:
    """A column's heading.

    Attributes:
        numeric: aligned to the right.
        hint: what it means.
    """

    name: str
    numeric: bool = True
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of entries below a title.

    Attributes:
        subtitle: what all rows have in common.
        notes: below it: extrapolated sides, verdicts, reasons of losses, checks.
    """

    title: str
    columns: list[Column]
    rows: list[list[Entry]]
    subtitle: str = ""
    notes: list[str] = field(default_factory=list)


def number(value: float | None, digits: int = 3) -> Entry:
    """A plain number; empty where there is none."""
    return Entry() if value is None else Entry(wording.significant(value, digits), key=value)


def seconds(spread: Spread | None, mark: str = "") -> Entry:
    """Median with quartiles."""
    if spread is None:
        return Entry()
    details = (wording.seconds_range(spread),) if spread.count > 1 else ()
    return Entry(mark + wording.seconds(spread.median), details, spread.median, hint=rounds(spread))


def rounds(spread: Spread) -> str:
    """How many samples a figure is over."""
    return f"{spread.count} round{'s' * (spread.count != 1)}"


def share(spread: Spread | None) -> Entry:
    """A share in per cent."""
    return Entry() if spread is None else Entry(wording.percent(spread.median), (), spread.median)


def times(spread: Spread | None) -> Entry:
    """A ratio with quartiles that is no comparison with a baseline."""
    if spread is None:
        return Entry()
    return Entry(wording.times(spread.median), (wording.times_range(spread.low, spread.high),), spread.median)


def mark(side: Side) -> str:
    """Before each figure of a side that did not run whole."""
    return "~" if side.extrapolated_from else ""


def own_seconds(record: Record) -> Entry:
    """Seconds of ours."""
    side = record.sides.get(OURS)
    return seconds(side.seconds, mark(side)) if side else Entry()


def peak(side: Side | None) -> Entry:
    """Peak memory of a side."""
    if side is None or side.peak_bytes is None:
        return Entry()
    return Entry(wording.storage(side.peak_bytes), (), side.peak_bytes)


def against(side: Side | None, *, less_work: bool = False, with_peak: bool = True) -> Entry:
    """How many times as long a side takes as ours, with quartiles and its peak memory.

    Args:
        less_work: the side does only a part of the work, so its being faster is no loss.
        with_peak: name the peak memory too.
    """
    if side is None:
        return Entry()
    if side.ratio is None:
        return Entry((side.verdict or "not timed").partition(":")[0], hint=side.verdict or "")
    details = [wording.times_range(side.ratio.low, side.ratio.high)] if side.ratio.count > 1 else []
    if with_peak and side.peak_bytes is not None:
        details.append(wording.storage(side.peak_bytes))
    timed = f"{wording.seconds(side.seconds.median)} in {rounds(side.seconds)}" if side.seconds else ""
    hint = "; ".join(filter(None, (timed, side.agreement)))
    loss = loses(side) and not less_work
    return Entry(mark(side) + wording.times(side.ratio.median), tuple(details), side.ratio.median, loss, hint)


def case_columns(records: Sequence[Record], without: Iterable[str] = ()) -> tuple[list[str], str]:
    """Fields that get a column because they vary, and the others in words."""
    left_out = set(without)
    columns = sorted((name for name in varying(records) if name not in left_out), key=wording.field_order)
    constant = {name: records[0].case[name] for name in fields(records) if name not in left_out and name not in columns}
    return columns, wording.described(constant)


def case_heads(names: Sequence[str], records: Sequence[Record]) -> list[Column]:
    """Headings of a case's fields."""
    return [
        Column(wording.heading(name), all(not isinstance(record.case.get(name), str) for record in records))
        for name in names
    ]


def case_entries(names: Sequence[str], record: Record) -> list[Entry]:
    """Values of a case's fields."""
    entries = []
    for name in names:
        found = record.case.get(name)
        key = found if isinstance(found, (int, float, str)) else None
        entries.append(Entry() if found is None else Entry(wording.value(name, found), key=key))
    return entries


def side_names(records: Iterable[Record], names: Iterable[str]) -> list[str]:
    """Those of the names that any record has a side of, in their order."""
    there = {name for record in records for name in record.sides}
    return [name for name in dict.fromkeys(names) if name in there]


def notes(records: Sequence[Record]) -> list[str]:
    """What has to be said below a table of these records."""
    sides = [(name, side) for record in records for name, side in record.sides.items()]
    parts = dict.fromkeys(f"{name} ({side.extrapolated_from})" for name, side in sides if side.extrapolated_from)
    lines = [f"~ extrapolated from a part of the work: {', '.join(parts)}."] if parts else []
    lines += dict.fromkeys(f"{name}: {side.verdict}." for name, side in sides if side.verdict)
    return lines + loss_notes(records) + commit_notes(records)


def commit_notes(records: Sequence[Record]) -> list[str]:
    """Which rows are of which commit, where there are several."""
    commits = Counter(record.run.rpartition(" ")[2] for record in records)
    parts = [f"{commit} ({count} rows)" for commit, count in commits.items()]
    return [f"Measured at several commits: {', '.join(parts)}."] if len(parts) > 1 else []


def loss_notes(records: Sequence[Record]) -> list[str]:
    """A line for every baseline that is faster anywhere, with the reasons that are known."""
    lines = []
    for name in dict.fromkeys(name for record in records for name in record.sides):
        cells = [record.sides[name] for record in records if name in record.sides]
        lost = [side for side in cells if loses(side) and side.reason is not None]
        for reason in dict.fromkeys(side.reason for side in lost):
            count = sum(side.reason == reason for side in lost)
            where = "" if len(cells) == 1 else f" in {count} of {len(cells)} rows"
            lines.append(f"{name} is faster{where}: {(reason or '').rstrip('.')}.")
    return lines


def check_note(records: Sequence[Record]) -> str:
    """How the sides' answers compared before timing: sides that compared alike together, one example a side."""
    alike: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for record in records for name in record.sides):
        texts = [record.sides[name].agreement for record in records if name in record.sides]
        found = list(dict.fromkeys(text for text in texts if text))
        if found:
            others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            alike.setdefault(found[0] + others, []).append(name)
    parts = [f"{', '.join(names)}: {text}" for text, names in alike.items()]
    return f"Checked before timing. {'; '.join(parts)}." if parts else ""
