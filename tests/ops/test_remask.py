"""Which committed positions become masks again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mdlm_fast import ops

MASK = 77


@pytest.mark.ops("remask_")
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 4), st.integers(0, 15), st.integers(0, 10**6), st.integers(-1, 20))
def test_trap_s10_the_least_sure_in_scope_and_no_other(
    backend: str, sequences: int, length: int, seed: int, count: int
) -> None:
    """Prompt, infill and positions outside the scope stay, whatever their confidence; ties take the later position."""
    generator = torch.Generator().manual_seed(seed)
    shape = (sequences, length)
    masked = torch.rand(shape, generator=generator) < 0.3
    scope = torch.rand(shape, generator=generator) < 0.7
    canvas = torch.where(masked, MASK, torch.randint(0, 50, shape, generator=generator))
    running = -0.25 * torch.randint(0, 5, shape, generator=generator).float()
    running[torch.rand(shape, generator=generator) < 0.1] = -torch.inf
    commit_step = torch.randint(0, 9, shape, generator=generator).to(torch.int16)
    counts = (count + torch.arange(sequences)).to(torch.int32)
    before = {"canvas": canvas.clone(), "masked": masked.clone(), "commit_step": commit_step.clone()}
    masks_left, done = torch.empty(sequences, dtype=torch.int32), torch.empty(sequences, dtype=torch.bool)
    ops.remask_(
        canvas, masked, running, scope, counts, mask_id=MASK, commit_step=commit_step, masks_left=masks_left, done=done
    )
    for b in range(sequences):
        candidates = [p for p in range(length) if scope[b, p] and not before["masked"][b, p]]
        order = sorted(candidates, key=lambda p: (float(running[b, p]), -p))
        chosen = set(order[: max(0, int(counts[b]))])
        for p in range(length):
            assert bool(masked[b, p]) == (p in chosen or bool(before["masked"][b, p]))
            assert canvas[b, p] == (MASK if p in chosen else before["canvas"][b, p])
            assert commit_step[b, p] == (-1 if p in chosen else before["commit_step"][b, p])
    assert masks_left.tolist() == masked.sum(1).tolist()
    assert done.tolist() == (masked.sum(1) == 0).tolist()


@pytest.mark.ops("select_commit_", "remask_")
def test_remasking_undoes_the_last_of_the_commit_order(backend: str) -> None:
    """With equal confidences, committing k + n and remasking n is committing k."""
    rows = torch.arange(10, dtype=torch.int32)
    confidence = torch.zeros(10)
    states = []
    for quota, remasked in ((7, 3), (4, 0)):
        canvas, masked = torch.full((1, 10), MASK), torch.ones(1, 10, dtype=torch.bool)
        ops.select_commit_(
            canvas, masked, rows, torch.arange(10), confidence, quota=torch.tensor([quota], dtype=torch.int32)
        )
        count = torch.tensor([remasked], dtype=torch.int32)
        ops.remask_(canvas, masked, confidence[None].clone(), torch.ones_like(masked), count, mask_id=MASK)
        states.append((canvas.tolist(), masked.tolist()))
    assert states[0] == states[1]


@pytest.mark.ops("remask_")
def test_strided_canvas(backend: str) -> None:
    canvas, masked = torch.arange(12).view(1, 12), torch.zeros(1, 12, dtype=torch.bool)
    running = torch.arange(12.0).view(1, 12)
    ops.remask_(
        canvas[:, ::3],
        masked[:, ::3],
        running[:, ::3],
        torch.ones(1, 4, dtype=torch.bool),
        torch.tensor([2], dtype=torch.int32),
        mask_id=MASK,
    )
    assert canvas.tolist() == [[MASK, 1, 2, MASK, 4, 5, 6, 7, 8, 9, 10, 11]]
    assert masked.nonzero().tolist() == [[0, 0], [0, 3]]
