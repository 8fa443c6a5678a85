"""One group an op, at one size each, for `pytest bench/`; `mdlm-fast bench --suite kernels` measures the rest.

In float32, since the sides that torch.compile would spend half a minute on belong to the suite's centre, in bfloat16.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from mdlm_fast.bench.harness.timing import Candidate
from mdlm_fast.bench.suites.kernels import commit, finish, linear, logprobs, score
from mdlm_fast.bench.suites.kernels.cell import Prepared
from mdlm_fast.bench.suites.kernels.grid import CENTRE
from mdlm_fast.bench.suites.settings import Settings

SETTINGS = Settings()
SHAPE = replace(CENTRE, dtype=torch.float32)
HEAD = replace(SHAPE, vocab=32_000)
TRAINING = replace(HEAD, rows=128)


def logits_group(variant: str) -> Callable[[], Prepared]:
    return partial(score.prepared, SHAPE, variant, SETTINGS)


#: By group: what is prepared, and the names of its sides.
GROUPS: dict[str, tuple[Callable[[], Prepared], tuple[str, ...]]] = {
    f"score_rows, {score.GREEDY}": (logits_group(score.GREEDY), ("ours", "LLaDA", "Fast-dLLM")),
    f"score_rows, {score.FIVE}": (logits_group(score.FIVE), ("ours", "Dream")),
    f"score_rows, {score.SAMPLED}": (logits_group(score.SAMPLED), ("ours", "LLaDA", "EOSER/CJ-GRPO rollout")),
    "score_partials": (partial(finish.first_half, SHAPE, SETTINGS), ("ours",)),
    "finish_scores": (partial(finish.second_half, SHAPE, score.SAMPLED, SETTINGS), ("ours",)),
    "linear_score_rows": (
        linear.head_cell(HEAD, linear.HIDDEN, linear.GREEDY, SETTINGS).prepare,
        ("ours", "library GEMM + ours", "LLaDA", "library GEMM alone"),
    ),
    "select_commit_, quota [8, 256]": (
        partial(commit.commit, commit.QUOTA, 8, 256, SETTINGS),
        ("ours", "LLaDA", "EOSER/CJ-GRPO rollout"),
    ),
    "remask_ [8, 256]": (partial(commit.remask, 8, 256, SETTINGS), ("ours", "MDPO")),
    "token_logprobs, forward + backward": (
        logprobs.logits_cell(TRAINING, logprobs.BOTH, SETTINGS).prepare,
        ("ours", "log_softmax + gather", "TRL"),
    ),
    "linear_token_logprobs, forward + backward": (
        logprobs.head_cell(TRAINING, linear.HIDDEN, logprobs.BOTH, SETTINGS).prepare,
        ("ours", "library GEMM + ours", "log_softmax + gather", "TRL", "chunked linear cross-entropy"),
    ),
}


@lru_cache(maxsize=1)
def checked(group: str) -> dict[str, Candidate]:
    """The candidates of a group by name, checked against each other; the last group's inputs are kept."""
    prepared = GROUPS[group][0]()
    prepared.check()
    return {candidate.name: candidate for candidate in prepared.candidates}


@pytest.mark.parametrize(("group", "side"), [(group, side) for group, (_, names) in GROUPS.items() for side in names])
def test_side(group: str, side: str, benchmark: BenchmarkFixture) -> None:
    candidates = checked(group)
    assert set(candidates) == set(GROUPS[group][1])
    calls = itertools.count()
    benchmark.group = group
    benchmark.pedantic(lambda: candidates[side].call(next(calls)), rounds=5, warmup_rounds=1)
