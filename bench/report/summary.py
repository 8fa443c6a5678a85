"""Wins and losses: how ours stands against each baseline over all cells, and every loss by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..harness.results import Record, Side
from . import tables_decode, tables_kernels, tables_rl, wording
from .derived import baselines, geometric_mean, loses
from .tables import Column, Entry, Table, against
from .views import View, centre, grouped

SUITES = {
    "kernels": "Kernels",
    "decode": "Whole decodes",
    "quality": "Accuracy beside speed",
    "rl": "Training",
}


@dataclass(frozen=True)
class Comparison:
    """Ours against one baseline in one kind of work, over all its cells.

    Attributes:
        work: op and variant, or what else is done.
        baseline: its name.
        cells: (record, the baseline's side), those with a ratio.
    """

    work: str
    baseline: str
    cells: list[tuple[Record, Side]]

    @property
    def ratios(self) -> list[float]:
        return [side.ratio.median for _, side in self.cells if side.ratio is not None]

    @property
    def lost(self) -> list[tuple[Record, Side]]:
        return [(record, side) for record, side in self.cells if loses(side)]

    @property
    def central(self) -> Side:
        """The baseline's side in the cell where the axes cross."""
        return centre([record for record, _ in self.cells]).sides[self.baseline]


def work(record: Record) -> str:
    """What a record's cells have in common in a summary."""
    case = record.case
    if record.suite == "kernels":
        return f"{case.get('op', '')}, {case['variant']}" if case.get("variant") else str(case.get("op", ""))
    if record.suite == "decode":
        temperature = (
            f", T\u00a0=\u00a0{wording.value('temperature', case['temperature'])}" if "temperature" in case else ""
        )
        return f"decode, {case.get('layout', '')}{temperature}"
    return f"{case.get('method', '')} iteration" + (f", {case['head']} head" if "head" in case else "")


def ordered(records: Sequence[Record]) -> list[Record]:
    """Records of a suite in the order of its tables, without what compares nothing."""
    if any(record.suite == "kernels" for record in records):
        return [record for _, _, chosen in tables_kernels.by_variant(records) for record in chosen]
    return list(records)


def comparisons(records: Sequence[Record]) -> list[Comparison]:
    """All of a suite, in the order of its tables."""
    found = []
    for name, chosen in grouped(ordered(records), work).items():
        for baseline in dict.fromkeys(baseline for record in chosen for baseline in baselines(record)):
            cells = [(record, record.sides[baseline]) for record in chosen if baseline in record.sides]
            cells = [(record, side) for record, side in cells if side.ratio is not None]
            if cells:
                found.append(Comparison(name, baseline, cells))
    return found


def suite_tables(view: View, suite: str) -> Iterator[Table]:
    """All tables of a suite."""
    records = view.suite(suite)
    if suite == "kernels":
        yield from tables_kernels.tables(records, view.threads)
    elif suite == "decode":
        yield from tables_decode.decode_tables(records)
    elif suite == "quality":
        yield from tables_decode.quality_tables(records)
    elif suite == "rl":
        yield from tables_rl.tables(records)


def summary_table(view: View, suite: str) -> Table | None:
    """A row a kind of work and baseline; None where nothing is compared."""
    rows = []
    for found in comparisons(view.suite(suite)):
        ratios, lost = found.ratios, len(found.lost)
        middle = found.central.ratio
        rows.append(
            [
                Entry(found.work, key=found.work),
                Entry(found.baseline, key=found.baseline),
                Entry(
                    "~" * bool(found.central.extrapolated_from) + wording.times(middle.median) if middle else "",
                    (wording.times_range(middle.low, middle.high),) if middle else (),
                    middle.median if middle else None,
                    loses(found.central),
                ),
                Entry(wording.times(geometric_mean(ratios)), key=geometric_mean(ratios)),
                Entry(wording.times_range(min(ratios), max(ratios)) + "×", key=min(ratios)),
                Entry(f"{len(ratios) - lost} of {len(ratios)}", key=lost / len(ratios)),
            ]
        )
    heads = [
        Column("work", False),
        Column("baseline", False),
        Column("central cell", hint="ratio of seconds, baseline over ours, with quartiles, where the axes cross"),
        Column("mean", hint="geometric mean of the cells' ratios"),
        Column("smallest–largest"),
        Column("ours faster in", hint="cells"),
    ]
    return Table(f"{SUITES[suite]}: ours against each baseline", heads, rows) if rows else None


def headline(view: View) -> str:
    """One sentence: comparisons, wins, losses."""
    found = [one for suite in SUITES for one in comparisons(view.suite(suite))]
    total, lost = sum(len(one.cells) for one in found), sum(len(one.lost) for one in found)
    if not total:
        return ""
    return f"Of {total:,} comparisons with a baseline, ours is faster in {total - lost:,} and slower in {lost:,}" + (
        ", which are listed below." if lost else "."
    )


def losses(view: View) -> Table | None:
    """Every cell in which a baseline is faster, with the reason; None where there is none."""
    rows = []
    for suite in SUITES:
        for found in comparisons(view.suite(suite)):
            for record, side in found.lost:
                case = {name: value for name, value in record.case.items() if name not in ("op", "variant", "decoder")}
                rows.append(
                    [
                        Entry(found.work, key=found.work),
                        Entry(wording.described(case)),
                        Entry(found.baseline, key=found.baseline),
                        against(side, with_peak=False),
                        Entry(side.reason or "not known"),
                    ]
                )
    heads = [
        Column("work", False),
        Column("cell", False),
        Column("baseline", False),
        Column("ratio"),
        Column("why", False),
    ]
    return Table("Where a baseline is faster", heads, rows) if rows else None
