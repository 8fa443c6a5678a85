"""How many bytes of memory the CUDA kernels move, against the floors of memory_traffic.py, and in how many launches."""

from __future__ import annotations

import pytest
from gpu_free.build_shim import build_ops
from gpu_free.memory_traffic import Traffic, measure_all, read_table
from gpu_free.shim_library import registered

# Of the floor, from memory; as requested; launches. Sampling reads one tile of 2048 columns again: 1/16 of a row of
# 32768, 1/62 of one of 126464. Filters read the row again to find where to cut and to sum what is left, and every pass
# within a launch but the first may hit a cache.
LIMITS: dict[str, tuple[float, float, int]] = {
    "score_rows greedy": (1.02, 1.04, 2),
    "score_rows sampled, V=32768": (1.04 + 1 / 16, 1.07 + 1 / 16, 2),
    "score_rows sampled, V=126464": (1.04, 1.07, 2),
    "score_rows top-k": (2.2, 6.0, 3),
    "score_rows top-p": (2.2, 6.0, 3),
    "token_logprobs,": (1.02, 1.02, 2),
    "token_logprobs_backward": (1.01, 1.02, 4),
    "select_commit_": (1.2, 2.1, 1),
}
TOLERANCE = 0.003


@pytest.fixture(scope="module")
def measured() -> dict[str, Traffic]:
    with registered(build_ops()) as shim:
        return measure_all(shim)


@pytest.mark.parametrize("call", read_table())
def test_bytes_and_launches(measured: dict[str, Traffic], call: str) -> None:
    traffic, recorded = measured[call], read_table()[call]
    (from_memory, requested, launches) = next(limit for name, limit in LIMITS.items() if call.startswith(name))
    assert traffic.from_memory <= from_memory
    assert traffic.requested <= requested
    assert traffic.launches <= launches
    same = (
        abs(traffic.from_memory - recorded.from_memory) <= TOLERANCE
        and abs(traffic.requested - recorded.requested) <= TOLERANCE
        and traffic.launches == recorded.launches
    )
    assert same, f"bytes.json says {recorded}: run python tests/gpu_free/memory_traffic.py --write"


def test_the_table_is_complete(measured: dict[str, Traffic]) -> None:
    assert list(measured) == list(read_table())
