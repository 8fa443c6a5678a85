"""Stage: a decode step in a CUDA graph, replayed with other numbers in its tensors, equals the eager step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu_check.settings import Settings
from bench.gpu_check.worker import Item
from mdlm_fast import ops

RULES = ("quota", "threshold", "quota_threshold", "entropy_bound", "origin")
STEPS = 4


@dataclass
class Step:
    """All that a decode step reads and writes, in tensors that stay where they are."""

    logits: Tensor  # bf16 [B, L, V]
    canvas: Tensor  # int64 [B, L]
    masked: Tensor  # bool [B, L]
    rows: Tensor  # int32 [C]
    next_rows: Tensor  # int32 [C]
    commit_step: Tensor  # int16 [B, L]
    commit_logp: Tensor  # f32 [B, L]
    temperature: Tensor  # f32 [B]
    seeds: Tensor  # int64 [B]
    step: Tensor  # int32 [1]
    quota: Tensor  # int32 [B]
    threshold: Tensor  # f32 [B]
    gamma: Tensor  # f32 [B]
    special: Tensor  # int64 [2]: forbidden ids, and the EOS ids of the discount
    rule: str

    def run(self) -> None:
        scores = ops.score_rows(
            self.logits,
            self.rows,
            temperature=self.temperature,
            seeds=self.seeds,
            step=self.step,
            forbidden_ids=self.special[:1],
        )
        assert scores.logp is not None
        ops.select_commit_(
            self.canvas,
            self.masked,
            self.rows,
            scores.token,
            scores.logp,
            rule=self.rule,
            quota=self.quota,
            threshold=self.threshold,
            entropy=scores.entropy,
            discount="log",
            gamma=self.gamma,
            eos_ids=self.special[1:],
            seeds=self.seeds,
            step=self.step,
            logp=scores.logp,
            commit_step=self.commit_step,
            commit_logp=self.commit_logp,
            next_rows=self.next_rows,
        )
        self.rows.copy_(self.next_rows)

    def set(self, other: Step) -> None:
        """Take over another step's numbers, in place."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                value.copy_(getattr(other, name))

    def scalars(self, number: int) -> None:
        """The numbers of one step of the schedule."""
        g = torch.Generator().manual_seed(number)
        batch = self.temperature.shape[0]
        self.step.fill_(number)
        self.temperature.copy_(torch.rand(batch, generator=g) * (torch.arange(batch) != number % batch))
        self.quota.copy_(torch.randint(0, 6, (batch,), generator=g))
        self.threshold.copy_(torch.rand(batch, generator=g) * (-8.0 if "threshold" in self.rule else 0.5))
        self.gamma.copy_(torch.rand(batch, generator=g))

    def written(self) -> dict[str, Tensor]:
        return {n: getattr(self, n) for n in ("canvas", "masked", "rows", "commit_step", "commit_logp")}


def make_step(settings: Settings, rule: str) -> Step:
    batch, length, width = (2, 6, 70) if settings.dry else (4, 64, 32000)
    device = settings.device
    g = torch.Generator().manual_seed(1)
    masked = torch.rand(batch, length, generator=g) < 0.8
    rows = torch.where(masked.flatten(), torch.arange(batch * length), -1).int()
    return Step(
        (torch.randn(batch, length, width, generator=g) * 3).bfloat16().to(device),
        torch.full((batch, length), 5, device=device),
        masked.to(device),
        rows.to(device),
        torch.full_like(rows, -1, device=device),
        torch.full((batch, length), -1, dtype=torch.int16, device=device),
        torch.zeros(batch, length, device=device),
        torch.zeros(batch, device=device),
        torch.arange(batch, device=device),
        torch.zeros(1, dtype=torch.int32, device=device),
        torch.zeros(batch, dtype=torch.int32, device=device),
        torch.zeros(batch, device=device),
        torch.zeros(batch, device=device),
        torch.tensor([5, 7], device=device),
        rule,
    )


def items(settings: Settings) -> Iterator[Item]:
    for backend in settings.backends:
        needs = ("score_rows", "select_commit_")
        if all(backend in ops.available_backends(op, settings.device, torch.bfloat16) for op in needs):
            for rule in RULES:
                yield Item(f"{backend}: {rule}", partial(check, settings, backend, rule))


def check(settings: Settings, backend: str, rule: str) -> dict[str, Any]:
    """Differing elements between eager steps and replays, over a few steps of a schedule."""
    with ops.use_backend(backend):
        eager, captured, fresh = (make_step(settings, rule) for _ in range(3))
        replay = _capture(captured) if settings.device == "cuda" else captured.run
        captured.set(fresh)  # warming up has committed
        differing, committed = 0, 0
        for number in range(STEPS):
            for step, run in ((eager, eager.run), (captured, replay)):
                step.scalars(number)
                run()
            differing += sum(int((b != captured.written()[a]).sum()) for a, b in eager.written().items())
        committed = int((eager.commit_step >= 0).sum())
    return {"backend": backend, "rule": rule, "differing": differing, "committed": committed}


def _capture(step: Step) -> Any:
    step.scalars(0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step.run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.run()
    return graph.replay
