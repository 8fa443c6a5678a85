"""How many bytes of memory the kernels move, against the floors of memory_traffic.py, and in how many launches."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from gpu_free.memory_traffic import Traffic, measure_cuda, measure_triton, read_table


class Limit(NamedTuple):
    from_memory: float
    requested: float
    launches: int


# Sampling reads one tile of 2048 columns again: 1/16 of a row of 32768, 1/62 of one of 126464. Filters read the row
# again, to find where to cut and to sum what is left; of the passes of one launch all but the first may hit a cache.
# Triton finds the cut bit by bit, in 16 or 32 passes. Its records of log-probs are half a sector each.
LIMITS: dict[str, dict[str, Limit]] = {
    "cuda": {
        "score_rows greedy": Limit(1.02, 1.04, 1),
        "score_rows sampled, V=32768": Limit(1.04 + 1 / 16, 1.07 + 1 / 16, 2),
        "score_rows sampled, V=126464": Limit(1.04, 1.07, 2),
        "score_rows top-": Limit(2.2, 6.0, 3),
        "token_logprobs,": Limit(1.02, 1.02, 2),
        "token_logprobs_backward": Limit(1.01, 1.02, 4),
        "select_commit_": Limit(1.2, 2.1, 1),
    },
    "triton": {
        "score_rows greedy": Limit(1.02, 1.03, 2),
        "score_rows sampled, V=32768": Limit(1.04 + 1 / 16, 1.04 + 1 / 16, 2),
        "score_rows sampled, V=126464": Limit(1.04, 1.05, 2),
        "score_rows top-": Limit(3.2, 34.2, 4),
        "token_logprobs,": Limit(1.02, 1.02, 2),
        "token_logprobs_backward": Limit(1.01, 1.01, 2),
        "select_commit_": Limit(1.9, 1.7, 2),
    },
}
TOLERANCE = 0.003


def check(kind: str, measured: dict[str, Traffic]) -> None:
    recorded = read_table()[kind]
    assert list(measured) == list(recorded)
    for call, traffic in measured.items():
        limit = next(limit for name, limit in LIMITS[kind].items() if call.startswith(name))
        assert traffic.from_memory <= limit.from_memory, call
        assert traffic.requested <= limit.requested, call
        assert traffic.launches <= limit.launches, call
        no_worse = (
            traffic.from_memory <= recorded[call].from_memory + TOLERANCE
            and traffic.requested <= recorded[call].requested + TOLERANCE
            and traffic.launches <= recorded[call].launches
        )
        assert no_worse, f"{call}: {traffic}, but bytes.json has {recorded[call]}"


def test_cuda_kernels() -> None:
    check("cuda", measure_cuda())


@pytest.mark.slow
def test_triton_kernels() -> None:
    check("triton", measure_triton())
