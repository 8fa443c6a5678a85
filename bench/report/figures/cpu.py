"""Figures of the CPU benchmarks: docs/benchmarks.json, what `make bench` measured last on a CPU."""

from __future__ import annotations

from functools import partial

from ...harness.results import CEILING
from .. import tables_kernels, wording
from ..derived import geometric_mean, loses
from ..markdown import markdown_table, with_title
from ..summary import SUITES, Comparison, comparisons
from .sources import NotMeasured, Sources, figure, register, rows_table

V = 126_464  # LLaDA's


@figure
def bench_machine(sources: Sources) -> str:
    """Machine, versions and date of the newest run."""
    run = sources.cpu.newest
    return f"{sources.cpu.machine}, torch {run['packages']['torch']}, {str(run['date']).split()[0]}"


@figure
def bench_headline(sources: Sources) -> str:
    """A table of all comparisons with a baseline: a row a kind of work, its worst ratio first."""
    rows = []
    for suite in SUITES:
        by_work: dict[str, list[Comparison]] = {}
        for one in comparisons(sources.cpu.suite(suite)):
            by_work.setdefault(work(one), []).append(one)
        for name, found in by_work.items():
            cells = [(side.ratio.median, loses(side), one) for one in found for _, side in one.cells if side.ratio]
            ratios = [ratio for ratio, _, _ in cells]
            worst, best = (end(cells, key=lambda cell: cell[0]) for end in (min, max))
            won = sum(not lost for _, lost, _ in cells)
            ends = [f"{wording.times(ratio)} ({one.baseline})" for ratio, _, one in (worst, best)]
            middle = wording.times(geometric_mean(ratios))
            rows.append([name, f"{won} of {len(cells)}", ends[0], middle, ends[1]])
    if not rows:
        raise NotMeasured("benchmarks.json compares nothing: make bench")
    return rows_table(["", "ours faster in", "smallest ratio", "geometric mean", "largest ratio"], rows)


def work(found: Comparison) -> str:
    """The op, whatever its variant; decodes and training as the benchmarks' page calls them."""
    op = found.cells[0][0].case.get("op")
    return found.work if op is None else f"`{op}`"


def op_tables(sources: Sources, op: str) -> str:
    """An op's tables at LLaDA's vocabulary, one a variant, as the benchmarks' page has them for all."""
    kernels = sources.cpu.suite("kernels")
    chosen = [record for record in kernels if record.case["op"] == op and record.case.get("vocab", V) == V]
    records = [record for record in chosen if record.case.get("variant") != tables_kernels.CONTROL]
    if not records:
        raise NotMeasured(f"benchmarks.json has no {op}: mdlm-fast bench --suite kernels --where op={op}")
    tables = tables_kernels.tables(records, sources.cpu.threads)
    return "\n".join(line for table in tables for line in with_title(table))


for _op in ("score_rows", "linear_score_rows", "linear_token_logprobs"):
    register(f"bench-{_op.replace('_', '-')}", partial(op_tables, op=_op))


@figure
def bench_ceilings(sources: Sources) -> str:
    """What the machine itself reaches: reading memory, multiplying matrices."""
    records = [record for record in sources.cpu.suite("kernels") if CEILING in record.sides]
    if not records:
        raise NotMeasured("benchmarks.json has no ceilings: mdlm-fast bench --suite kernels --where op=read")
    return markdown_table(tables_kernels.ceiling_table(records))
