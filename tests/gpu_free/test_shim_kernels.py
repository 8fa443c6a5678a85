"""The CUDA kernels, run on the CPU by the host shim: the same bits whatever order threads and blocks run in and however
large the device, no race, nothing outside a buffer, and the op tests' verdict on every number."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gpu_free.build_shim import ROOT, build_ops
from gpu_free.shim_cases import Call, Outputs, all_calls
from gpu_free.shim_library import LIBRARY_VARIABLE, SCHEDULES, Shim, registered

from mdlm_fast import ops

RUN_ON_SHIM = Path(__file__).with_name("run_on_shim.py")
RUN_SANITIZED = Path(__file__).with_name("run_sanitized.py")


@pytest.fixture(scope="module")
def library() -> Path:
    return build_ops()


@pytest.fixture(scope="module")
def shim(library: Path) -> Iterator[Shim]:
    with registered(library) as shim:
        yield shim


def calls() -> list:
    return [pytest.param(call, id=str(call), marks=(pytest.mark.slow,) * call.large) for call in all_calls()]


def bits(outputs: Outputs) -> dict[str, bytes]:
    return {name: x.contiguous().view(torch.uint8).numpy().tobytes() for name, x in outputs.items() if x.numel()}


@pytest.mark.parametrize("call", calls())
def test_the_order_of_threads_does_not_matter(shim: Shim, call: Call) -> None:
    missing = [op for op in call.needs if "shim" not in ops.available_backends(op)]
    assert not missing, f"no CUDA kernels for {missing}"
    expected: dict[str, bytes] | None = None
    for i, schedule in enumerate(SCHEDULES):
        shim.set_schedule(schedule)
        shim.set_multiprocessors((4, 1, 16, 7, 2)[i])
        outputs = bits(call.run("shim"))
        expected = expected or outputs
        different = [name for name in expected if outputs[name] != expected[name]]
        assert not different, f"schedule {schedule}"


def run_on_shim(library: Path, *arguments: str, **environment: str) -> None:
    command = [sys.executable, *arguments]
    variables = os.environ | {LIBRARY_VARIABLE: str(library), "OMP_NUM_THREADS": "1"} | environment
    result = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["forward", "random:7"])
def test_op_tests(library: Path, schedule: str) -> None:
    options = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", "shim"]
    run_on_shim(library, *options, "tests/ops", "tests/parity", MDLM_FAST_SHIM_SCHEDULE=schedule)


@pytest.mark.slow
def test_sanitized(library: Path) -> None:
    run_on_shim(library, str(RUN_SANITIZED), "--large")


@pytest.mark.slow
def test_no_races() -> None:
    run_on_shim(build_ops(races=True), str(RUN_ON_SHIM))
