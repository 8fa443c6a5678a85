"""Speed of `select_commit_` on the CPU against the eager per-row top-k loop of the published decoders.

    python bench/select_commit.py

Both start from the scores of a step (token, confidence and log-prob of every candidate) and write the canvas and the
commit step. Ours also writes the log-probs, the mask counts and the next row list. Every round runs both, in turn, on
fresh copies, and checks that they wrote the same canvas.
"""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import torch
from torch import Tensor

from mdlm_fast import ops

SHAPES = ((1, 64), (8, 256), (64, 1024))
ROUNDS = 200


class Step(NamedTuple):
    """A step's input: canvas, masked [B, L]; rows, token, confidence [C]; quota [B]."""

    canvas: Tensor
    masked: Tensor
    rows: Tensor
    token: Tensor
    confidence: Tensor
    quota: Tensor


class Record(NamedTuple):
    """What ours writes besides the canvas."""

    commit_step: Tensor
    commit_logp: Tensor
    masks_left: Tensor
    done: Tensor
    next_rows: Tensor
    num_next_rows: Tensor


def random_step(batch: int, length: int) -> Step:
    masked = torch.rand(batch, length) < 0.7
    rows = masked.flatten().nonzero()[:, 0].int()
    count = rows.numel()
    canvas = torch.randint(0, 1000, (batch, length))
    token = torch.randint(0, 1000, (count,))
    return Step(canvas, masked, rows, token, torch.randn(count), torch.randint(0, 8, (batch,), dtype=torch.int32))


def empty_record(step: Step) -> Record:
    batch, length = step.canvas.shape
    return Record(
        torch.full((batch, length), -1, dtype=torch.int16),
        torch.zeros(batch, length),
        torch.zeros(batch, dtype=torch.int32),
        torch.zeros(batch, dtype=torch.bool),
        torch.empty_like(step.rows),
        torch.zeros(1, dtype=torch.int32),
    )


def fused(step: Step, record: Record) -> None:
    ops.select_commit_(
        step.canvas,
        step.masked,
        step.rows,
        step.token,
        step.confidence,
        logp=step.confidence,
        quota=step.quota,
        step=0,
        rule="quota",
        **record._asdict(),
    )


def eager_loop(step: Step, scores: Tensor, token: Tensor) -> None:
    """One top-k per sequence, as LLaDA and its descendants write it. scores (-inf: no candidate), token: [B, L]."""
    transfer = torch.zeros_like(step.masked)
    for b in range(step.canvas.shape[0]):
        _, best = torch.topk(scores[b], k=int(step.quota[b]))
        transfer[b, best] = True
    step.canvas[transfer] = token[transfer]


def copied(step: Step) -> Step:
    return step._replace(canvas=step.canvas.clone(), masked=step.masked.clone())


def measure(step: Step) -> tuple[list[float], list[float]]:
    """Seconds of every round: ours, eager."""
    scores = torch.full(step.canvas.shape, -torch.inf)
    scores.view(-1)[step.rows.long()] = step.confidence
    token = torch.zeros_like(step.canvas)
    token.view(-1)[step.rows.long()] = step.token
    record = empty_record(step)
    ours, eager = [], []
    for _ in range(ROUNDS):
        a, b = copied(step), copied(step)
        start = time.perf_counter()
        fused(a, record)
        middle = time.perf_counter()
        eager_loop(b, scores, token)
        eager.append(time.perf_counter() - middle)
        ours.append(middle - start)
        assert torch.equal(a.canvas, b.canvas)
    return ours, eager


def main() -> None:
    torch.manual_seed(0)
    print(f"select_commit_, rule quota, {torch.get_num_threads()} threads, medians of {ROUNDS} interleaved rounds")
    print(f"{'[B, L]':>12}{'ours us':>10}{'eager us':>10}{'ratio':>8}")
    for batch, length in SHAPES:
        ours, eager = (statistics.median(times) * 1e6 for times in measure(random_step(batch, length)))
        print(f"{f'[{batch}, {length}]':>12}{ours:10.1f}{eager:10.1f}{eager / ours:7.1f}x")


if __name__ == "__main__":
    main()
