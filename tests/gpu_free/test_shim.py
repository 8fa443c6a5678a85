"""The host shim: right kernels give right answers in every order, and each planted mistake is noticed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gpu_free.build_shim import BUILD, build
from gpu_free.planted_program import Result, run_kernel
from gpu_free.shim_library import SCHEDULES, Shim

KERNELS = Path(__file__).with_name("planted_kernels.cu")
PROGRAM = Path(__file__).with_name("planted_program.py")
THREADS, WARP = 128, 32
NUMBERS = 6 * THREADS - 7  # the last block is not full


@pytest.fixture(scope="module")
def shim() -> Shim:
    return Shim(build(BUILD / "planted/libplanted.so", [KERNELS]))


@pytest.fixture(scope="module")
def sanitized() -> Path:
    return build(BUILD / "planted-sanitize/libplanted.so", [KERNELS], sanitize="address,undefined")


@pytest.fixture(scope="module")
def watched() -> Shim:
    return Shim(build(BUILD / "planted-races/libplanted.so", [KERNELS], races=True))


def numbers() -> np.ndarray:
    """Small integers as float32 [NUMBERS]: sums of them are exact in any order."""
    return np.random.default_rng(0).integers(-9, 10, NUMBERS).astype(np.float32)


def run(shim: Shim, kernel: str, schedule: str) -> Result:
    shim.set_schedule(schedule)
    return run_kernel(shim.functions, kernel, numbers())


def by(size: int) -> np.ndarray:
    """`numbers` in groups [groups, size], zeros behind the last."""
    padded = np.pad(numbers(), (0, -NUMBERS % size))
    return padded.reshape(-1, size)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_right_kernels(shim: Shim, schedule: str) -> None:
    x = numbers()
    positive = x[x > 0]
    # A lane without a number, beyond the end, holds zero.
    expected = {
        "block_sum": np.repeat(by(THREADS).sum(1), THREADS)[:NUMBERS],
        "warp_scan": by(WARP).cumsum(1).ravel()[:NUMBERS],
        "compaction": np.pad(positive, (0, NUMBERS - len(positive))),
        "pairs": np.repeat(by(2).sum(1), 2)[:NUMBERS],
        "same_value": np.repeat((by(THREADS) > 0).any(1), THREADS)[:NUMBERS],
    }
    for kernel, out in expected.items():
        result = run(shim, kernel, schedule)
        assert result.error is None, result.error
        np.testing.assert_array_equal(result.out, out, err_msg=kernel)
    assert run(shim, "count_positive", schedule).counter == len(positive)


ORDER_DEPENDENT = [
    "missing_barrier",
    "missing_barrier_before_reuse",
    "missing_syncwarp",
    "missing_grid_barrier",
    "uninitialised_dynamic",
    "uninitialised_static",
    "shuffle_from_outside_the_mask",
    "order_of_blocks",
]


@pytest.mark.parametrize("kernel", ORDER_DEPENDENT)
def test_order_dependent_kernels_differ(shim: Shim, kernel: str) -> None:
    results = [run(shim, kernel, schedule) for schedule in SCHEDULES]
    assert all(result.error is None for result in results)
    assert len({result.out.tobytes() for result in results}) > 1
    again = [run(shim, kernel, schedule) for schedule in SCHEDULES]
    for first, second in zip(results, again, strict=True):
        assert first.out.tobytes() == second.out.tobytes(), "a schedule is not repeatable"


# What the report says, and where: the kernel's function must hold the line.
REPORTED = {
    "divergent_barrier": ["divergent barrier", "__syncthreads_or at planted_kernels.cu"],
    "early_exit": ["divergent barrier", "threads 120-127 returned", "threads 0-119 wait in __syncthreads"],
    "mask_without_the_caller": ["__shfl_down_sync with mask 0x7fffffff", "leaves out the calling lane 31"],
    "mask_of_absent_lanes": ["waits for lanes that never arrive", "threads 0-15, 32-47", "returned"],
    "mask_of_returned_lanes": ["waits for lanes that never arrive", "threads 30-31, 62-63, 94-95, 126-127 returned"],
    "mask_beyond_the_block": ["__shfl_xor_sync with mask 0xffffffff", "names lane 16 of a warp of 16"],
    "different_operations": ["the lanes of a warp are at different operations", "__ballot_sync at", "__any_sync at"],
    "write_past_shared_memory": ["wrote outside its 512 bytes of dynamic shared memory, at byte 512"],
    "write_before_shared_memory": ["wrote outside its 512 bytes of dynamic shared memory, at byte -4"],
    "misaligned_vector": ["load of 16 bytes at a misaligned address"],
    "null_pointer": ["load of 4 bytes through a null pointer"],
    "grid_barrier_alone": ["grid_barrier in a launch that is not cooperative"],
    "grid_barrier_of_some": ["the grid barrier waits for threads that never arrive", "threads 0-127 returned"],
    "too_many_blocks": ["too many blocks in cooperative launch"],
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kernel", REPORTED)
def test_wrong_kernels_are_reported(shim: Shim, kernel: str, schedule: str) -> None:
    error = run(shim, kernel, schedule).error
    assert error is not None
    missing = [part for part in REPORTED[kernel] if part not in error]
    assert not missing, error
    assert run(shim, "block_sum", schedule).error is None, "the next launch works"


def line_of(text: str, after: str) -> int:
    """The first line of planted_kernels.cu with `text` from the line with `after` on."""
    lines = KERNELS.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if after in line)
    return next(i for i, line in enumerate(lines[start:], start + 1) if text in line)


def test_reports_name_the_source_line(shim: Shim) -> None:
    line = line_of("__syncthreads();", "void early_exit(")
    assert f"planted_kernels.cu:{line}" in (run(shim, "early_exit", "forward").error or "")
    line = line_of("__ballot_sync", "void different_operations(")
    assert f"__ballot_sync at planted_kernels.cu:{line}" in (run(shim, "different_operations", "forward").error or "")


# Where the two accesses are: a word of each one's source line.
RACES = {
    "missing_barrier": ("shared", "for (const float x : sums) total += x;"),
    "missing_barrier_before_reuse": ("shared", "values[threadIdx.x] = 2 * other;"),
    "missing_syncwarp": ("shared", "put(a, values[threadIdx.x ^ 1]);"),
    "missing_grid_barrier": ("global", "put(a, static_cast<float>(load(a.counter)));"),
    "lost_updates": ("shared", "total += my_value(a);"),
    "last_write": ("shared", "last = my_value(a)"),
    "lost_updates_between_blocks": ("global", "store(a.counter, load(a.counter) + 1);"),
    "read_while_others_add": ("shared", "put(a, total > 0 ? 1.0f : 0.0f);"),
}


@pytest.mark.parametrize("kernel", RACES)
def test_races_are_reported(watched: Shim, kernel: str) -> None:
    memory, text = RACES[kernel]
    for schedule in SCHEDULES:
        error = run(watched, kernel, schedule).error or ""
        assert f"race in {memory} memory" in error, (schedule, error)
    assert f"planted_kernels.cu:{line_of(text, f'void {kernel}(')}" in error


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_right_kernels_have_no_races(watched: Shim, schedule: str) -> None:
    for kernel in ("block_sum", "warp_scan", "compaction", "pairs", "count_positive", "same_value"):
        assert run(watched, kernel, schedule).error is None


SANITIZED = {
    "vector_past_the_end": ["heap-buffer-overflow", "load_vector", "vector_past_the_end"],
    "read_past_shared_memory": ["use-after-poison", "read_past_shared_memory"],
    "write_past_shared_memory": ["use-after-poison", "write_past_shared_memory"],
    "index_past_static_array": ["index 128 out of bounds", "planted_kernels.cu"],
}


@pytest.mark.parametrize("kernel", [*SANITIZED, "compaction", "missing_barrier"])
def test_sanitizers_see_what_leaves_a_buffer(sanitized: Path, kernel: str) -> None:
    runtime = subprocess.run(["c++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = os.environ | {"LD_PRELOAD": runtime.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    result = subprocess.run(
        [sys.executable, str(PROGRAM), str(sanitized), kernel], env=environment, capture_output=True, text=True
    )
    assert (result.returncode != 0) == (kernel in SANITIZED), result.stderr
    missing = [part for part in SANITIZED.get(kernel, []) if part not in result.stderr]
    assert not missing, result.stderr


def test_counters(shim: Shim) -> None:
    shim.take_counters()
    run(shim, "count_positive", "forward")
    counters = shim.take_counters()
    assert counters.bytes_loaded == 4 * NUMBERS + 4 * 6, "each number once, and the atomic of each block"
    assert (counters.bytes_stored, counters.atomics, counters.launches) == (4 * 6, 6, 1)
    assert shim.take_counters().bytes == 0


def test_unknown_schedule(shim: Shim) -> None:
    with pytest.raises(ValueError, match="'sideways' is not forward, reverse or random:SEED"):
        shim.set_schedule("sideways")
