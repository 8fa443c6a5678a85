"""Figures of the CPU benchmarks: docs/benchmarks.json, what `make bench` measured last on a CPU."""

from __future__ import annotations

from functools import partial

from ...harness.results import CEILING, Record
from .. import tables_kernels, wording
from ..derived import best_baseline, geometric_mean
from ..markdown import markdown_table, with_title
from ..summary import SUITES, judged, work
from ..views import grouped
from .sources import NotMeasured, Sources, figure, register, rows_table

V = 126_464  # LLaDA's


@figure
def bench_machine(sources: Sources) -> str:
    """Machine, versions and date of the newest run."""
    run = sources.cpu.newest
    return f"{sources.cpu.machine}, torch {run['packages']['torch']}, {str(run['date']).split()[0]}"


@figure
def bench_headline(sources: Sources) -> str:
    """A row a kind of work: ours against the fastest baseline of each cell."""
    rows = []
    for suite in SUITES:
        for name, records in grouped(judged(sources.cpu.suite(suite)), op_or_work).items():
            best = [found for record in records if (found := best_baseline(record))]
            ratios = [spread.median for _, spread in best]
            ends = [end(best, key=lambda found: found[1].median) for end in (min, max)]
            won = sum(ratio > 1 for ratio in ratios)
            middle = wording.times(geometric_mean(ratios))
            shown = [f"{wording.times(spread.median)} ({baseline})" for baseline, spread in ends]
            rows.append([name, f"{won} of {len(best)}", shown[0], middle, shown[1]])
    if not rows:
        raise NotMeasured("benchmarks.json compares nothing: make bench")
    heads = ["", "cells where ours is fastest", "smallest ratio", "geometric mean", "largest ratio"]
    return rows_table(heads, rows)


def op_or_work(record: Record) -> str:
    """The op, whatever its variant; decodes and training as the benchmarks' page calls them."""
    op = record.case.get("op")
    return work(record) if op is None else f"`{op}`"


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
