"""Wins and losses: how ours stands against each baseline over all cells, and every loss by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..harness.results import Record, Side
from . import tables_decode, tables_kernels, tables_rl, wording
from .derived import baselines, best_baseline, geometric_mean, keeps_up
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
        """Cells in which the baseline is as fast as ours or faster."""
        return [(record, side) for record, side in self.cells if keeps_up(side)]

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
    """All of a suite in the order of its tables; of each work the baseline fastest in the central cell first."""
    found: list[Comparison] = []
    for name, chosen in grouped(ordered(records), work).items():
        here = []
        for baseline in dict.fromkeys(baseline for record in chosen for baseline in baselines(record)):
            cells = [(record, record.sides[baseline]) for record in chosen if baseline in record.sides]
            cells = [(record, side) for record, side in cells if side.ratio is not None]
            if cells:
                here.append(Comparison(name, baseline, cells))
        found += sorted(here, key=lambda one: one.central.ratio.median if one.central.ratio else 0.0)
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
        ratios = found.ratios
        faster = Entry(f"{len(ratios) - len(found.lost)} of {len(ratios)}", key=len(found.lost) / len(ratios))
        rows.append([Entry(found.work, key=found.work), Entry(found.baseline, key=found.baseline)])
        rows[-1] += [against(found.central, with_peak=False), *over_cells(ratios), faster]
    heads = [
        Column("work", False),
        Column("baseline", False),
        Column("central cell", hint="ratio of seconds, baseline over ours, with quartiles, where the axes cross"),
        Column("mean", hint="geometric mean of the cells' ratios"),
        Column("smallest–largest"),
        Column("ours faster in", hint="cells"),
    ]
    return Table(f"{SUITES[suite]}: ours against each baseline", heads, rows) if rows else None


def over_cells(ratios: Sequence[float]) -> list[Entry]:
    """Geometric mean and range."""
    mean = geometric_mean(ratios)
    span = Entry(wording.times_range(min(ratios), max(ratios)) + "×", key=min(ratios))
    return [Entry(wording.times(mean), key=mean), span]


def fastest_table(view: View, suite: str) -> Table | None:
    """A row a kind of work: ours against the fastest baseline of each cell; None where no cell has two of them."""
    rows, records = [], judged(view.suite(suite))
    if all(len(baselines(record)) < 2 for record in records):
        return None
    for name, chosen in grouped(records, work).items():
        best = {id(record): found for record in chosen if (found := best_baseline(record))}
        ratios = [spread.median for _, spread in best.values()]
        middle, smallest = centre(chosen), min(chosen, key=lambda record: best[id(record)][1].median)
        rival, hardest = (best[id(record)][0] for record in (middle, smallest))
        faster = sum(ratio > 1 for ratio in ratios)
        rows.append([Entry(name, key=name), Entry(rival, key=rival)])
        rows[-1] += [against(middle.sides[rival], with_peak=False), *over_cells(ratios)]
        rows[-1] += [Entry(hardest, key=hardest), Entry(f"{faster} of {len(ratios)}", key=1 - faster / len(ratios))]
    heads = [
        Column("work", False),
        Column("fastest baseline", False, hint="in the cell where the axes cross"),
        Column("central cell", hint="ratio of seconds, that baseline over ours, with quartiles"),
        Column("mean", hint="geometric mean over the cells, in each against its fastest baseline"),
        Column("smallest–largest", hint="of these ratios"),
        Column("smallest against", False),
        Column("ours fastest in", hint="cells"),
    ]
    return Table(f"{SUITES[suite]}: ours against the fastest baseline of each cell", heads, rows)


def judged(records: Sequence[Record]) -> list[Record]:
    """Records of a suite in which a baseline was timed, in the order of its tables."""
    return [record for record in ordered(records) if best_baseline(record)]


def headline(view: View) -> str:
    """Cells in which ours is faster than the fastest baseline, and the others, in a sentence; empty without any."""
    best = [best_baseline(record) for suite in SUITES for record in judged(view.suite(suite))]
    faster = sum(found is not None and found[1].median > 1 for found in best)
    if not best:
        return ""
    if faster == len(best):
        return f"In all {len(best):,} cells ours is faster than every baseline."
    return (
        f"In {faster:,} of {len(best):,} cells ours is faster than every baseline; "
        f"in {len(best) - faster:,} some baseline is as fast or faster."
    )


def losses(view: View) -> Table | None:
    """Every baseline in a cell that is as fast or faster there, with the reason; None where there is none."""
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
    return Table("Where a baseline is as fast or faster", heads, rows) if rows else None
