"""Tables of the kernel suite: the machine's ceilings, then one an op and variant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..harness.results import CEILING, OURS, READ, Record
from . import wording
from .derived import LESS_WORK, baselines, gb_per_s, gflop_per_s, share_of_read, thread_scaling
from .tables import (
    Column,
    Entry,
    Table,
    against,
    case_columns,
    case_entries,
    case_heads,
    check_note,
    notes,
    number,
    own_seconds,
    peak,
    seconds,
    share,
    side_names,
    times,
)
from .views import grouped

CONTROL = "against itself"
#: In the order of a step: score, commit, remask, then training.
OPS = (
    "score_rows",
    "score_partials",
    "finish_scores",
    "linear_score_rows",
    "select_commit_",
    "remask_",
    "token_logprobs",
    "linear_token_logprobs",
)
VARIANTS = (
    "token, log-prob",
    "all five",
    "T=0.7",
    "top-p 0.9, T=0.7",
    "top-k 50, T=0.7",
    "quota",
    "threshold",
    "forward",
    "forward + backward",
)
#: Ops whose inputs in the suite are small, so they come from the cache.
FROM_CACHE = ("finish_scores", "select_commit_", "remask_")


def tables(records: Sequence[Record], threads: int) -> Iterator[Table]:
    """Of one machine's records.

    Args:
        threads: CPU threads of "ours".
    """
    ceilings = [record for record in records if CEILING in record.sides]
    if ceilings:
        yield ceiling_table(ceilings)
    controls = [record for record in records if record.case.get("variant") == CONTROL]
    for op, variant, chosen in by_variant(records):
        yield op_table(f"{op}, {variant}" if variant else op, chosen, threads)
    if controls:
        yield control_table(controls)


def by_variant(records: Sequence[Record]) -> Iterator[tuple[str, str, list[Record]]]:
    """Op, variant and their records, in the order of OPS; neither ceilings nor controls."""
    ops = [record for record in records if CEILING not in record.sides and record.case.get("variant") != CONTROL]
    groups = grouped(ops, lambda record: (str(record.case.get("op", "")), str(record.case.get("variant", ""))))
    for op, variant in sorted(groups, key=lambda name: (place(OPS, name[0]), place(VARIANTS, name[1]))):
        yield op, variant, groups[op, variant]


def place(order: Sequence[str], name: str) -> int:
    """Where a name stands; behind all others if it is unknown."""
    return order.index(name) if name in order else len(order)


def ceiling_table(records: Sequence[Record]) -> Table:
    """What the machine can do, measured in the same run."""
    rows = []
    for record in records:
        case, side = record.case, record.sides[CEILING]
        bandwidth, rate = gb_per_s(record, CEILING), gflop_per_s(record, CEILING)
        name = "memory read" if case["op"] == "read" else "matrix product"
        what = Entry(f"{name} {wording.value('dtype', case.get('dtype', ''))}".strip(), key=name)
        figure = f"{wording.significant(rate)} GFLOP/s" if rate else f"{wording.significant(bandwidth or 0)} GB/s"
        rows.append(
            [what, Entry(str(case.get("threads", ""))), Entry(figure, key=rate or bandwidth), seconds(side.seconds)]
        )
    heads = [Column("what", False), Column("threads"), Column("rate"), Column("seconds")]
    return Table("The machine's ceilings", heads, rows, "what the figures below are measured against")


def op_table(title: str, records: Sequence[Record], threads: int) -> Table:
    """One op and variant: seconds, bandwidth, scaling, memory, and the ratio to every baseline."""
    names, constant = case_columns(records, ("op", "variant"))
    less = [name for name in side_names(records, LESS_WORK) if name != READ]
    others = side_names(records, (name for record in records for name in baselines(record)))
    scaled = any(thread_scaling(record) for record in records)
    heads = [
        *case_heads(names, records),
        Column("ours", hint="median and quartiles"),
        Column("GB/s", hint="the bytes that must be read or written at least, over the time"),
    ]
    shared = any(share_of_read(record) for record in records)
    if shared:
        heads.append(Column("of read", hint="time of merely reading those bytes, over ours, in the same rounds"))
    if scaled:
        heads.append(Column(f"1→{threads} threads", hint="time with one thread over time with all, in the same rounds"))
    weighed = any(record.sides[OURS].peak_bytes is not None for record in records if OURS in record.sides)
    if weighed:
        heads.append(Column("peak", hint="most memory in use beyond the inputs"))
    heads += [
        Column(name, hint=f"time of {name} over ours, with its quartiles and peak memory") for name in less + others
    ]
    rows = []
    for record in records:
        row = [*case_entries(names, record), own_seconds(record), number(gb_per_s(record))]
        if shared:
            row.append(share(share_of_read(record)))
        if scaled:
            row.append(times(thread_scaling(record)))
        if weighed:
            row.append(peak(record.sides.get(OURS)))
        row += [against(record.sides.get(name), less_work=name in less) for name in less + others]
        rows.append(row)
    below = notes(records)
    if less:
        below.append(f"{' and '.join(less)} does only a part of the work.")
    if records[0].case.get("op") in FROM_CACHE:
        below.append("Its inputs are small and come from the cache, so up to some size a call's fixed cost decides.")
    below.append(check_note(records))
    return Table(title, heads, rows, constant, [line for line in below if line])


def control_table(records: Sequence[Record]) -> Table:
    """The same op twice in the same rounds: what the method itself adds."""
    names, constant = case_columns(records, ("variant",))
    rows = [
        [*case_entries(names, record), own_seconds(record), times(record.sides[f"{OURS} again"].ratio)]
        for record in records
    ]
    heads = [*case_heads(names, records), Column("ours"), Column("ours again", hint="should be 1.00×")]
    return Table("Control: an op against itself", heads, rows, constant)
