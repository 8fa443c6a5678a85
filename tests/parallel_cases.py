"""Rows whose vocabulary is sharded: shared by test_parallel.py and the processes it starts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WIDTH = 9000
CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "seeds": 5, "step": 3},
    "flat": {"temperature": 3.0, "seeds": 6},
    "forbidden": {"temperature": 0.7, "seeds": 7, "forbidden_ids": [0, 2048, 4500], "vocab_limit": 8500},
    "tempered": {"temperature": 1.3, "seeds": 1, "stats_from": "tempered"},
    "all": {"normalize_over": "all", "forbidden_ids": [11], "stats": ("token", "logp", "entropy", "margin")},
}


def rows_and_logits(name: str) -> tuple[Tensor, Tensor]:
    """int32 [C] with padding, and bf16 [40, 9000]: ties between shards, peaked rows, -inf."""
    generator = torch.Generator().manual_seed(len(name))
    logits = torch.randn(40, WIDTH, generator=generator) * torch.linspace(0.1, 6, 40)[:, None]
    logits[3, [100, 5000]] = 30.0  # the same maximum on two shards: the lower id wins
    logits[4, :6000] = -torch.inf
    logits[5, 4096:] = -torch.inf
    rows = torch.randperm(40, generator=generator)[:33].to(torch.int32)
    rows[[2, 9]] = -1
    rows[:3] = torch.tensor([3, 4, 5], dtype=torch.int32)
    return rows, logits.bfloat16()


def shard_bounds(width: int, shards: int) -> list[tuple[int, int]]:
    """Columns of each shard: whole tiles, as equal as they can be."""
    tiles = -(-width // 2048)
    ends = [min(width, 2048 * (tiles * (k + 1) // shards)) for k in range(shards)]
    return list(zip([0, *ends[:-1]], ends, strict=True))
