"""Stage: the parity matrix of tests/parity on the device, one item per case and backend."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from bench.gpu_check.settings import Settings
from bench.gpu_check.worker import Item

GROUPS = (
    ("score_rows",),
    ("finish_scores",),
    ("linear_score_rows",),
    ("select_commit_",),
    ("token_logprobs", "linear_token_logprobs"),
)


def items(settings: Settings) -> Iterator[Item]:
    from parity.matrix import all_cases, has_ops
    from parity.measure import Target

    ops = settings.options.get("ops")
    for case in all_cases():
        if ((settings.quick or settings.dry) and not case.reduced) or (ops and case.op not in ops):
            continue
        for backend in settings.backends:
            target = Target(backend, settings.device)
            if has_ops(target, case):
                yield Item(f"{backend}: {case}", partial(run, case, target))


def run(case: Any, target: Any) -> dict[str, Any]:
    from parity.matrix import run_case
    from parity.measure import short

    measurements = run_case(case, target)
    worst = max(measurements, key=lambda m: m.ratio)
    return {
        "op": case.op,
        "backend": target.backend,
        "dtype": short(case.dtype),
        "worst": worst.ratio if worst.ratio != float("inf") else 1e9,
        "worst_what": worst.what,
        "failures": [f"{m.what}: error {m.error:.3g}, allowed {m.allowed:.3g}" for m in measurements if not m.passed],
    }


def table(results: dict[str, dict[str, Any]], errors: dict[str, str]) -> list[dict[str, Any]]:
    """A row per op, backend and dtype; errors (an op that raised, a context that was lost) count as failed cases."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}

    def row(op: str, backend: str, dtype: str) -> dict[str, Any]:
        empty = {"op": op, "backend": backend, "dtype": dtype, "cases": 0, "failed": 0, "worst": 0.0, "what": ""}
        found = rows.setdefault((op, backend, dtype), empty)
        found["cases"] += 1
        return found

    for result in results.values():
        found = row(result["op"], result["backend"], result["dtype"])
        found["failed"] += bool(result["failures"])
        if result["worst"] >= found["worst"]:
            found["worst"], found["what"] = result["worst"], result["worst_what"]
    for name in errors:
        backend, _, case = name.partition(": ")
        op, _, described = case.partition(": ")
        row(op, backend, described.rpartition(", ")[2])["failed"] += 1
    return [rows[key] for key in sorted(rows)]
