"""A canvas with every buffer that `select_commit_` writes, and what must hold after a step."""

from __future__ import annotations

from typing import Any

import torch
from oracles import commit_oracle

from mdlm_fast import ops

MASK = 99


class Canvas:
    """A canvas with some masks and every buffer that the op can write."""

    def __init__(self, masked: torch.Tensor, seed: int = 0, levels: int = 5) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.masked = masked.clone()
        self.canvas = torch.where(masked, MASK, torch.randint(0, 50, masked.shape, generator=generator))
        sequences, length = masked.shape
        rows = masked.flatten().nonzero()[:, 0].to(torch.int32)
        rows = rows[torch.randperm(rows.numel(), generator=generator)]
        padding = torch.full((3,), -1, dtype=torch.int32)
        self.rows = torch.cat([rows[:1], padding[:1], rows[1:], padding[1:]])
        count = self.rows.numel()
        self.token = torch.where(self.rows >= 0, torch.randint(0, 50, (count,), generator=generator), -1)
        # Few levels, so that ties are common.
        self.confidence = -0.25 * torch.randint(0, levels, (count,), generator=generator).float()
        self.entropy = 0.25 * torch.randint(0, 4, (count,), generator=generator).float()
        self.logp = torch.randn(count, generator=generator)
        self.logp_T = torch.randn(count, generator=generator)
        self.buffers: dict[str, torch.Tensor] = {
            "commit_step": torch.full((sequences, length), -1, dtype=torch.int16),
            "commit_logp": torch.full((sequences, length), 7.0),
            "commit_logp_T": torch.full((sequences, length), 7.0),
            "commit_confidence": torch.full((sequences, length), 7.0),
            "masks_left": torch.full((sequences,), -5, dtype=torch.int32),
            "done": torch.zeros(sequences, dtype=torch.bool),
            "next_rows": torch.full((count,), -7, dtype=torch.int32),
            "num_next_rows": torch.full((1,), -7, dtype=torch.int32),
        }

    def step(self, **arguments: Any) -> None:
        ops.select_commit_(
            self.canvas,
            self.masked,
            self.rows,
            self.token,
            self.confidence,
            entropy=self.entropy,
            logp=self.logp,
            logp_T=self.logp_T,
            **self.buffers,
            **arguments,
        )


def check_step(masked: torch.Tensor, state: Canvas, taken: dict[int, set[int]], steps: list[int]) -> None:
    """The canvas, the record and the lists after a step that took `taken[b]` (canvas positions)."""
    before = Canvas(masked)
    length = masked.shape[1]
    slot_of = {int(row): slot for slot, row in enumerate(state.rows.tolist()) if row >= 0}
    for b in range(masked.shape[0]):
        for position in range(length):
            slot = slot_of.get(b * length + position)
            took = position in taken[b]
            assert bool(state.masked[b, position]) == (bool(masked[b, position]) and not took)
            assert state.buffers["commit_step"][b, position] == (steps[b] if took else -1)
            for name, source in (("logp", state.logp), ("logp_T", state.logp_T), ("confidence", state.confidence)):
                wanted = source[slot] if took and slot is not None else 7.0
                assert state.buffers[f"commit_{name}"][b, position] == wanted
            if took:
                assert slot is not None and state.canvas[b, position] == state.token[slot]
            elif masked[b, position]:
                assert state.canvas[b, position] == MASK
    assert before.masked.shape == state.masked.shape
    left = state.masked.sum(1)
    assert state.buffers["masks_left"].tolist() == left.tolist()
    assert state.buffers["done"].tolist() == (left == 0).tolist()
    still = [row for row in state.rows.tolist() if row >= 0 and state.masked.flatten()[row]]
    assert state.buffers["num_next_rows"].tolist() == [len(still)]
    assert state.buffers["next_rows"].tolist() == still + [-1] * (state.rows.numel() - len(still))


def expected_positions(state: Canvas, masked: torch.Tensor, rule: str, b: int, **arguments: Any) -> set[int]:
    """What the oracle takes in sequence b, as canvas positions."""
    length = masked.shape[1]
    slot_of = {int(row): slot for slot, row in enumerate(state.rows.tolist()) if row >= 0}
    positions = [p for p in range(length) if b * length + p in slot_of]
    slots = [slot_of[b * length + p] for p in positions]
    chosen = commit_oracle(
        [float(state.confidence[s]) for s in slots],
        rule,
        entropy=[float(state.entropy[s]) for s in slots],
        **arguments,
    )
    return {positions[i] for i in chosen}
