"""Stage: speed of `score_rows` against what decoders do without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.gpu_check import baselines
from bench.gpu_check.settings import Settings
from bench.gpu_check.timing import copies, measure
from bench.gpu_check.worker import Item, able
from mdlm_fast import ops

VOCABULARIES = (126464, 32768)
ROWS = (512, 128, 32, 8)

#: Name -> keywords of score_rows.
MODES: dict[str, dict[str, Any]] = {
    "logp": {"stats": ("token", "logp")},
    "token": {"stats": ("token",)},
    "all": {},
    "T=0.7": {"temperature": 0.7, "stats": ("token", "logp", "logp_T")},
    "T=0.7, all": {"temperature": 0.7},
    "top-k": {"temperature": 0.7, "top_k": 50, "stats": ("token", "logp", "logp_T")},
    "top-p": {"temperature": 0.7, "top_p": 0.9, "stats": ("token", "logp", "logp_T")},
}

#: Name -> (function of the logits [N, V], the mode of ours it is compared with).
BASELINES: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "argmax": (baselines.argmax, "token"),
    "softmax + max": (baselines.softmax_max, "logp"),
    "softmax + argmax + gather": (baselines.softmax_argmax_gather, "logp"),
    "fp32 log_softmax, topk, entropy": (baselines.five_statistics, "all"),
    "float64 Gumbel": (baselines.gumbel, "T=0.7"),
    "top-k by masking": (baselines.top_k_sample, "top-k"),
    "top-p by sorting": (baselines.top_p_sample, "top-p"),
}
WAITING = ("top-k by masking", "top-p by sorting")  # their sampler's check waits for the device: no graphs
COMPILED = ("softmax + argmax + gather", "fp32 log_softmax, topk, entropy", "float64 Gumbel")


def items(settings: Settings) -> Iterator[Item]:
    """Those that matter most first, in case time runs out."""
    rows: tuple[int, ...] = (4,) if settings.dry else ROWS
    vocabularies: tuple[int, ...] = (3000,) if settings.dry else VOCABULARIES
    if settings.quick:
        rows, vocabularies = rows[::2], vocabularies[:1]
    backends = able(settings, "score_rows")
    for width in vocabularies:
        for count in rows:
            for mode in MODES:
                for backend in backends:
                    yield _ours(settings, backend, mode, count, width, torch.bfloat16)
            for name in BASELINES:
                yield _baseline(settings, name, count, width, compiled=False)
    for count in rows[:2] if settings.dry or not settings.quick else ():
        for name in COMPILED:
            yield _baseline(settings, name, count, vocabularies[0], compiled=True)
    for count in rows[:3:2]:
        for mode in ("logp", "all", "T=0.7"):
            for backend in backends:
                yield _ours(settings, backend, mode, count, vocabularies[0], torch.float32)


def row_arguments(settings: Settings, count: int, temperature: float | None = None) -> dict[str, Any]:
    """What a decoder has on the device already, so that no call fills in defaults: rows, positions, scalars."""
    rows = torch.arange(count, dtype=torch.int32, device=settings.device)
    return {
        "rows": rows,
        "row_position": rows,
        "temperature": torch.full((1,), temperature or 0.0, device=settings.device),
        "seeds": torch.ones(1, dtype=torch.int64, device=settings.device),
        "step": torch.zeros(1, dtype=torch.int32, device=settings.device),
        "sample": temperature is not None,
    }


def logits(settings: Settings, count: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Sets of logits [count, width] to rotate, cut from one random buffer."""
    number = copies(count * width * dtype.itemsize, settings)
    generator = torch.Generator(settings.device).manual_seed(0)
    buffer = torch.randn(number, count, width, device=settings.device, dtype=dtype, generator=generator)
    return list(buffer.mul_(3).unbind())


def _ours(settings: Settings, backend: str, mode: str, count: int, width: int, dtype: torch.dtype) -> Item:
    def run() -> dict[str, Any]:
        inputs = logits(settings, count, width, dtype)
        keywords = {**MODES[mode], **row_arguments(settings, count, MODES[mode].get("temperature"))}
        with ops.use_backend(backend):
            call = lambda i: ops.score_rows(inputs[i % len(inputs)], **keywords)  # noqa: E731
            times = measure(settings, call, calls=len(inputs))
        return _described(backend, mode, mode, inputs[0]) | times

    name = str(dtype).removeprefix("torch.")
    return Item(f"{backend}: score_rows, {mode}, {name} [{count}, {width}]", run)


def _baseline(settings: Settings, name: str, count: int, width: int, compiled: bool) -> Item:
    label = f"{name}, torch.compile" if compiled else name

    def run() -> dict[str, Any]:
        inputs = logits(settings, count, width, torch.bfloat16)
        function, mode = BASELINES[name]
        if compiled:
            torch._dynamo.reset()
            function = torch.compile(function, dynamic=False, backend="eager" if settings.dry else "inductor")
        call = lambda i: function(inputs[i % len(inputs)])  # noqa: E731
        times = measure(settings, call, calls=min(10, len(inputs)), graph=name not in WAITING)
        return _described("torch.compile" if compiled else "PyTorch", name, mode, inputs[0]) | times

    return Item(f"PyTorch: {label}, bfloat16 [{count}, {width}]", run)


def _described(backend: str, name: str, mode: str, example: Tensor) -> dict[str, Any]:
    return {
        "op": "score_rows",
        "backend": backend,
        "name": name,
        "mode": mode,
        "rows": example.shape[0],
        "width": example.shape[1],
        "dtype": str(example.dtype).removeprefix("torch."),
        "bytes": example.numel() * example.element_size(),
    }
