"""Stage: speed of `linear_score_rows` against a GEMM and what follows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu_check import baselines
from bench.gpu_check.bench_score import row_arguments
from bench.gpu_check.settings import Settings
from bench.gpu_check.timing import measure, peak_bytes
from bench.gpu_check.worker import Item, able
from mdlm_fast import ops

VOCABULARY, DEPTH = 126464, 4096
ROWS = (8, 32, 128, 512)
WEIGHTS = 2  # a gigabyte each, so one after the other comes from memory


def items(settings: Settings) -> Iterator[Item]:
    width, depth = (3000, 16) if settings.dry else (VOCABULARY, DEPTH)
    rows = (4,) if settings.dry else ROWS[::3] if settings.quick else ROWS
    for count in rows:
        for backend in able(settings, "linear_score_rows"):
            for name in ("fused, logp", "fused, all", "fused, T=0.7", "F.linear + score_rows"):
                yield _item(settings, backend, name, count, depth, width)
        for name in ("F.linear alone", "F.linear + eager"):
            yield _item(settings, "PyTorch", name, count, depth, width)


def _call(name: str, hidden: Tensor, weight: Tensor, scalars: dict[str, Any]) -> object:
    if name == "fused, logp":
        return ops.linear_score_rows(hidden, weight, **scalars, stats=("token", "logp"))
    if name == "fused, all":
        return ops.linear_score_rows(hidden, weight, **scalars)
    if name == "fused, T=0.7":
        return ops.linear_score_rows(hidden, weight, **scalars, stats=("token", "logp", "logp_T"))
    logits = F.linear(hidden, weight)
    if name == "F.linear + score_rows":
        return ops.score_rows(logits, **scalars, stats=("token", "logp"))
    return logits if name == "F.linear alone" else baselines.softmax_argmax_gather(logits)


def _item(settings: Settings, backend: str, name: str, count: int, depth: int, width: int) -> Item:
    def run() -> dict[str, Any]:
        device = settings.device
        g = torch.Generator(device).manual_seed(0)
        make = lambda *shape: torch.randn(*shape, device=device, dtype=torch.bfloat16, generator=g)  # noqa: E731
        hidden, weights = make(count, depth), [make(width, depth).mul_(0.02) for _ in range(WEIGHTS)]
        scalars = row_arguments(settings, count, 0.7 if "T=0.7" in name else None)
        with ops.use_backend(None if backend == "PyTorch" else backend):
            call = lambda i: _call(name, hidden, weights[i % WEIGHTS], scalars)  # noqa: E731
            times = measure(settings, call, calls=2 * WEIGHTS)
            times["peak_bytes"] = peak_bytes(settings, call)
        result = {"op": "linear_score_rows", "backend": backend, "name": name, "rows": count}
        result |= {"depth": depth, "width": width, "bytes": width * depth * 2, "flops": 2 * count * width * depth}
        return result | times

    return Item(f"{backend}: linear_score_rows, {name} [{count}, {depth}]", run)
