"""Every backend of this process that runs on the CPU, on the matrix of tests/parity.

The short list runs always; Triton under its interpreter (TRITON_INTERPRET=1) runs no other. The rest is slow.
"""

from __future__ import annotations

import pytest
from parity.matrix import all_cases, has_ops, run_case
from parity.measure import Case, Target

from mdlm_fast.ops import backend_report

SLOW_BACKENDS = ("triton", "shim")  # a kernel's instruction at a time


def parameters() -> list:
    targets = [Target(report["name"], "cpu") for report in backend_report() if report["available"]]
    chosen = []
    for case in all_cases():
        for target in targets:
            if has_ops(target, case) and (case.reduced or target.backend not in SLOW_BACKENDS):
                marks = () if case.reduced else (pytest.mark.slow,)
                chosen.append(pytest.param(case, target, id=f"{case}-{target.backend}", marks=marks))
    return chosen


@pytest.mark.parametrize("case,target", parameters())
def test_parity(case: Case, target: Target) -> None:
    failed = [measurement for measurement in run_case(case, target) if not measurement.passed]
    assert not failed
