"""The vocabulary in shards, in one process and in two that talk through gloo: the scores of whole rows, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parallel_cases import CASES, rows_and_logits, shard_bounds

from mdlm_fast import ops
from mdlm_fast.parallel import score_rows_sharded

PARTIAL_OPTIONS = ("temperature", "forbidden_ids", "normalize_over", "stats", "stats_from")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shards", (1, 2, 5))
def test_partials_of_shards_put_together(name: str, shards: int) -> None:
    rows, logits = rows_and_logits(name)
    options = CASES[name]
    given = {key: value for key, value in options.items() if key in PARTIAL_OPTIONS}
    partials = [
        ops.score_partials(
            logits[:, start:stop], rows, vocab_start=start, vocab_limit=options.get("vocab_limit", 9000), **given
        )
        for start, stop in shard_bounds(logits.shape[1], shards)
    ]
    merged = ops.finish_scores(torch.cat(partials, 1), rows, logits=logits, **options)
    for mine, whole in zip(merged, ops.score_rows(logits, rows, **options), strict=True):
        assert (mine is None and whole is None) or torch.equal(mine, whole)


def test_two_processes(tmp_path: Path) -> None:
    program = Path(__file__).with_name("parallel_program.py")
    path = os.pathsep.join([str(program.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    processes = [
        subprocess.Popen(
            [sys.executable, str(program), str(rank), "2", str(tmp_path / "meet"), str(tmp_path)], env=environment
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, options in CASES.items():
        rows, logits = rows_and_logits(name)
        whole = ops.score_rows(logits, rows, **options)
        for of_rank in results:
            for mine, theirs in zip(of_rank[name], whole, strict=True):
                assert (mine is None and theirs is None) or torch.equal(mine, theirs), name
    token = results[0]["greedy"][0]
    assert token[0] == 100 and (token == -1).sum() == 1  # the tie went to the lower shard; padding stayed padding


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"top_k": 5}, "top_k needs whole rows"),
        ({"normalize_over": "all"}, "normalize_over='all' with logp_T"),
        ({"vocab_stop": 4000}, "vocab_stop=4000 must be a multiple of 2048"),
        ({"vocab_start": 100}, "vocab_start=100 must be a multiple of 2048"),
    ),
)
def test_what_needs_whole_rows_is_refused(options: dict[str, object], message: str) -> None:
    rows, logits = rows_and_logits("greedy")
    bounds = {"vocab_start": 0, "vocab_stop": 4096}
    with pytest.raises(ValueError, match=message):
        score_rows_sharded(logits, rows, **{**bounds, **options})
