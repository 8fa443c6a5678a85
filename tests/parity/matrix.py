"""All cases, and how to run them on a device without pytest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from parity.commits import commit_cases
from parity.logprobs import logprob_cases
from parity.measure import Case, Measurement, Target, short
from parity.rows import row_cases
from parity.score_cases import linear_cases, score_cases

from mdlm_fast import ops


def all_cases() -> Iterator[Case]:
    yield from score_cases()
    yield from row_cases()
    yield from commit_cases()
    yield from linear_cases()
    yield from logprob_cases()


@dataclass
class Summary:
    """What the cases of one (op, backend, dtype) came to.

    `worst` is the measurement with the largest error / allowed, of any case.
    """

    op: str
    backend: str
    dtype: str
    cases: int = 0
    worst: Measurement = field(default_factory=lambda: Measurement("nothing", 0.0))
    worst_case: str = ""
    failures: list[str] = field(default_factory=list)

    def line(self) -> str:
        verdict = "ok" if not self.failures else f"FAILED ({len(self.failures)} of {self.cases} cases)"
        worst = f"worst {self.worst.ratio:5.2f} of allowed ({self.worst.what})" if self.cases else ""
        return f"{self.op:24}{self.backend:10}{self.dtype:10}{self.cases:4} cases  {verdict:8} {worst}"


def has_ops(target: Target, case: Case) -> bool:
    return all(target.backend in ops.available_backends(op, target.device, case.dtype) for op in case.needs)


def run_case(case: Case, target: Target) -> list[Measurement]:
    return list(case.build()(target))


def run_matrix(
    targets: Sequence[Target],
    *,
    reduced: bool = False,
    choose: Callable[[Case], bool] = lambda case: True,
    seconds: float = float("inf"),
    report: Callable[[str], None] = print,
) -> tuple[list[Summary], int]:
    """Run cases, each on every target that has its ops; an op that raises fails its case and nothing else.

    Args:
        seconds: no case is begun after that long.

    Returns:
        (summaries, number of cases left out for want of time).
    """
    summaries: dict[tuple[str, str, str], Summary] = {}
    end = time.monotonic() + seconds
    left_out = 0
    for case in all_cases():
        if (reduced and not case.reduced) or not choose(case):
            continue
        able = [target for target in targets if has_ops(target, case)]
        if not able:
            continue
        if time.monotonic() > end:
            left_out += 1
            continue
        try:
            check = case.build()
        except Exception as error:  # a mistake of the matrix itself
            report(f"{case}: cannot be built: {type(error).__name__}: {error}")
            check = None
        for target in able:
            key = (case.op, target.backend, short(case.dtype))
            summary = summaries.setdefault(key, Summary(*key))
            summary.cases += 1
            failures = ["cannot be built"]
            if check is not None:
                failures, worst = _measure(check, target)
                if worst is not None and worst.ratio >= summary.worst.ratio:
                    summary.worst, summary.worst_case = worst, case.name
            if failures:
                summary.failures.append(f"{case.name}: {failures[0]}")
                report(f"FAILED {target.backend}: {case}: " + "; ".join(failures[:3]))
    return list(summaries.values()), left_out


def _measure(check: Callable[..., object], target: Target) -> tuple[list[str], Measurement | None]:
    """(what failed, the worst measurement)."""
    try:
        measurements: list[Measurement] = list(check(target))  # type: ignore[call-overload]
    except Exception as error:
        return [f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error) else ''}"], None
    failed = [f"{m.what}: error {m.error:.3g}, allowed {m.allowed:.3g}" for m in measurements if not m.passed]
    return failed, max(measurements, key=lambda m: m.ratio, default=None)
