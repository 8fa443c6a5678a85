"""Stage: speed of `select_commit_` against the eager top-k loop of the published decoders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from bench.gpu_check import baselines
from bench.gpu_check.settings import Settings
from bench.gpu_check.timing import measure
from bench.gpu_check.worker import Item, able
from bench.suites.kernels.commit import empty_record
from mdlm_fast import ops

SHAPES = ((1, 256), (8, 256), (64, 256), (1, 1024), (8, 1024), (64, 1024))
RULES = ("quota", "threshold", "factor")
STATES = 16  # a call changes its canvas; each has its own, and all are restored before a round


class State:
    """What a step reads and writes."""

    def __init__(self, batch: int, length: int, device: str) -> None:
        g = torch.Generator().manual_seed(0)
        masked = torch.rand(batch, length, generator=g) < 0.7
        rows = masked.flatten().nonzero()[:, 0].int()
        self.saved = torch.randint(0, 1000, (batch, length), generator=g).to(device), masked.to(device)
        self.canvas, self.masked = (x.clone() for x in self.saved)
        self.rows = rows.to(device)
        self.token = torch.randint(0, 1000, rows.shape, generator=g).to(device)
        self.confidence = torch.rand(rows.shape, generator=g).log().to(device)
        self.quota = torch.randint(0, 8, (batch,), generator=g).int().to(device)
        self.threshold = torch.full((batch,), -0.1, device=device)
        self.step = torch.zeros(1, dtype=torch.int32, device=device)
        self.record = empty_record(batch, length, self.rows)
        # What the eager loop starts from.
        self.scores = torch.full((batch * length,), -torch.inf).index_copy_(0, rows.long(), self.confidence.cpu())
        self.scores = self.scores.view(batch, length).to(device)
        self.tokens = torch.zeros(batch * length, dtype=torch.int64).index_copy_(0, rows.long(), self.token.cpu())
        self.tokens = self.tokens.view(batch, length).to(device)

    def restore(self) -> None:
        self.canvas.copy_(self.saved[0])
        self.masked.copy_(self.saved[1])

    def commit(self, rule: str) -> None:
        ops.select_commit_(
            self.canvas,
            self.masked,
            self.rows,
            self.token,
            self.confidence,
            logp=self.confidence,
            rule=rule,
            quota=self.quota,
            threshold=self.threshold,
            step=self.step,
            **self.record,
        )


def items(settings: Settings) -> Iterator[Item]:
    shapes = ((2, 16),) if settings.dry else SHAPES[1::2] if settings.quick else SHAPES
    for batch, length in shapes:
        for rule in RULES:
            for backend in able(settings, "select_commit_"):
                yield _ours(settings, backend, rule, batch, length)
        yield _baseline(settings, batch, length)


def _ours(settings: Settings, backend: str, rule: str, batch: int, length: int) -> Item:
    def run() -> dict[str, Any]:
        states = [State(batch, length, settings.device) for _ in range(STATES)]

        def restore() -> None:
            for state in states:
                state.restore()

        with ops.use_backend(backend):
            call = lambda i: states[i % STATES].commit(rule)  # noqa: E731
            times = measure(settings, call, calls=STATES, prepare=restore)
        return _described(backend, rule, batch, length) | times

    return Item(f"{backend}: select_commit_, {rule} [{batch}, {length}]", run)


def _baseline(settings: Settings, batch: int, length: int) -> Item:
    def run() -> dict[str, Any]:
        state = State(batch, length, settings.device)
        call = lambda i: baselines.commit_best(state.canvas, state.tokens, state.scores, state.quota)  # noqa: E731
        times = measure(settings, call, calls=1, graph=False, prepare=state.restore)
        return _described("PyTorch", "quota", batch, length) | times

    return Item(f"PyTorch: top-k loop [{batch}, {length}]", run)


def _described(backend: str, rule: str, batch: int, length: int) -> dict[str, Any]:
    positions = batch * length
    # Canvas and mask read; of each candidate row, token, confidence and log-prob; next rows written.
    moved = positions * 9 + int(0.7 * positions) * (4 + 8 + 4 + 4 + 4)
    return {"op": "select_commit_", "backend": backend, "name": rule, "batch": batch, "length": length, "bytes": moved}
