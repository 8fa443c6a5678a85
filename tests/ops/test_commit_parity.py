"""`select_commit_` and `remask_`: every backend writes exactly what the reference writes, on random ragged input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mdlm_fast import ops

RULES = ("quota", "threshold", "factor", "entropy_bound", "quota_threshold", "origin")


def random_step(seed: int) -> dict[str, Any]:
    """Inputs of one step: ties, -inf, padding anywhere, unsorted and unmasked rows, quotas above the candidates."""
    g = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=g)

    batch, length = int(integers(1, 5)), int(integers(1, 40))
    rows = (torch.rand(batch * length, generator=g) < 0.7).nonzero()[:, 0].int()
    rows = torch.cat([rows, rows.new_full((seed % 4,), -1)])
    if seed % 3 == 0:
        rows = rows[torch.randperm(rows.numel(), generator=g)]
    count = rows.numel()
    confidence = torch.randn(count, generator=g).mul(3).round() / 3
    if seed % 2:
        confidence = -confidence.abs()
    confidence[torch.rand(count, generator=g) < 0.1] = -torch.inf
    rule = RULES[seed % len(RULES)]
    probability = rule in ("factor", "entropy_bound", "origin")
    return {
        "canvas": integers(0, 9, batch, length),
        "masked": torch.rand(batch, length, generator=g) < 0.6,
        "rows": rows,
        "token": integers(-1, 6, count),
        "confidence": confidence,
        "logp": torch.randn(count, generator=g),
        "logp_T": torch.randn(count, generator=g),
        "entropy": torch.rand(count, generator=g).mul(5).round() / 5,
        "quota": integers(0, length + 3, batch).int(),
        "threshold": torch.rand(batch, generator=g) if probability else torch.randn(batch, generator=g),
        "gamma": torch.rand(batch, generator=g) * (seed % 4 != 0),
        "eos_ids": torch.tensor([0, 3]),
        "row_position": integers(0, 99, count).int(),
        "seeds": integers(-(2**62), 2**62, batch),
        "step": integers(0, 9, batch if seed % 2 else 1).int(),
        "rule": rule,
        "discount": ("none", "log", "multiply")[(seed // 6) % 3],
        "alg_temp": 0.7 if (seed // 18) % 4 == 0 else 0.0,
    }


def commit_and_remask(inputs: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """Commit, then remask at random, on the backend in use; everything that was written."""
    inputs = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    batch, length = inputs["canvas"].shape
    written = {
        "commit_step": torch.full((batch, length), -1, dtype=torch.int16),
        "commit_logp": torch.zeros(batch, length),
        "commit_logp_T": torch.zeros(batch, length),
        "commit_confidence": torch.zeros(batch, length),
        "masks_left": torch.full((batch,), -7, dtype=torch.int32),
        "done": torch.zeros(batch, dtype=torch.bool),
        "next_rows": torch.full_like(inputs["rows"], -7),
        "num_next_rows": torch.full((1,), -7, dtype=torch.int32),
    }
    first = [inputs.pop(name) for name in ("canvas", "masked", "rows", "token", "confidence")]
    canvas, masked = first[:2]
    g = torch.Generator().manual_seed(seed)
    ops.select_commit_(*first, **inputs, **written)
    committed = {"committed": canvas.clone(), "left": masked.clone()}
    ops.remask_(
        canvas,
        masked,
        torch.randn(batch, length, generator=g).mul(2).round(),
        torch.rand(batch, length, generator=g) < 0.8,
        torch.randint(0, length + 2, (batch,), generator=g).int(),
        mask_id=8,
        commit_step=written["commit_step"],
        masks_left=written["masks_left"],
        done=written["done"],
    )
    return {**committed, **written, "canvas": canvas, "masked": masked}


@pytest.mark.ops("select_commit_", "remask_")
@pytest.mark.parametrize("rule", range(len(RULES)), ids=RULES)
def test_backends_write_what_the_reference_writes(backend: str, rule: int) -> None:
    for seed in range(rule, 600, len(RULES)):
        inputs = random_step(seed)
        actual = commit_and_remask(inputs, seed)
        with ops.use_backend("reference"):
            expected = commit_and_remask(inputs, seed)
        for name, value in expected.items():
            assert torch.equal(actual[name], value), f"seed {seed}, {inputs['discount']}: {name} differs"
