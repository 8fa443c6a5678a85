"""Stage: speed and memory of `token_logprobs` and `linear_token_logprobs`, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu_check import baselines
from bench.gpu_check.settings import Settings
from bench.gpu_check.timing import copies, measure, peak_bytes
from bench.gpu_check.worker import Item, able
from mdlm_fast import ops

VOCABULARY, DEPTH = 126464, 4096


def items(settings: Settings) -> Iterator[Item]:
    width, depth = (3000, 16) if settings.dry else (VOCABULARY, DEPTH)
    counts = (8,) if settings.dry else (1024,) if settings.quick else (1024, 256)
    for backend in (*able(settings, "linear_token_logprobs_backward"), "PyTorch"):
        yield _linear(settings, backend, counts[0], depth, width)
    for backend in (*able(settings, "token_logprobs_backward"), "PyTorch"):
        for count in counts:
            yield _plain(settings, backend, count, width)


def _plain(settings: Settings, backend: str, count: int, width: int) -> Item:
    """Logits [count, width] bf16 to log-probs, and the gradient of their weighted sum."""

    def run() -> dict[str, Any]:
        number = copies(count * width * 2, settings)
        g = torch.Generator(settings.device).manual_seed(0)
        make = lambda: torch.randn(count, width, device=settings.device, dtype=torch.bfloat16, generator=g)  # noqa: E731
        leaves = [make().requires_grad_() for _ in range(number)]
        targets = torch.randint(width, (count,), device=settings.device, generator=g)
        upstream = torch.randn(count, device=settings.device, generator=g)

        def logp(z: Tensor) -> Tensor:
            if backend == "PyTorch":
                return baselines.log_softmax_gather(z, targets)
            return ops.token_logprobs(z, None, targets)[0]

        def both(i: int) -> object:
            z = leaves[i % number]
            value = logp(z)
            return torch.autograd.grad((value * upstream.to(value.dtype)).sum(), z)

        def forward(i: int) -> object:
            with torch.no_grad():
                return logp(leaves[i % number])

        result = {"op": "token_logprobs", "backend": backend, "rows": count, "width": width}
        result["bytes"] = 3 * count * width * 2  # logits read twice, gradient written
        return result | _measured(settings, backend, both, forward, number)

    return Item(f"{backend}: token_logprobs [{count}, {width}]", run)


def _linear(settings: Settings, backend: str, count: int, depth: int, width: int) -> Item:
    """Hidden states [count, depth] and a head [width, depth], bf16."""

    def run() -> dict[str, Any]:
        g = torch.Generator(settings.device).manual_seed(0)
        make = lambda *shape: torch.randn(*shape, device=settings.device, dtype=torch.bfloat16, generator=g)  # noqa: E731
        hidden, weight = make(count, depth).requires_grad_(), make(width, depth).mul_(0.02).requires_grad_()
        targets = torch.randint(width, (count,), device=settings.device, generator=g)
        upstream = torch.randn(count, device=settings.device, generator=g)

        def logp() -> Tensor:
            if backend == "PyTorch":
                return baselines.log_softmax_gather(F.linear(hidden, weight), targets)
            return ops.linear_token_logprobs(hidden, weight, None, None, targets)[0]

        def both(i: int) -> object:
            value = logp()
            return torch.autograd.grad((value * upstream.to(value.dtype)).sum(), (hidden, weight))

        def forward(i: int) -> object:
            with torch.no_grad():
                return logp()

        result = {"op": "linear_token_logprobs", "backend": backend, "rows": count, "width": width, "depth": depth}
        result["bytes"] = 3 * width * depth * 2  # the head read twice, its gradient written
        result["flops"] = 6 * count * width * depth  # logits and two gradients; computing logits again costs 2 more
        return result | _measured(settings, backend, both, forward, 2)

    return Item(f"{backend}: linear_token_logprobs [{count}, {depth}] x [{width}, {depth}]", run)


def _measured(
    settings: Settings, backend: str, both: Callable[[int], object], forward: Callable[[int], object], number: int
) -> dict[str, Any]:
    """Times of forward and backward together and of the forward pass alone; memory beyond the inputs."""
    with ops.use_backend(None if backend == "PyTorch" else backend):
        times = measure(settings, both, calls=number)
        times["forward_us"] = measure(settings, forward, calls=number)["device_us"]
        times["peak_bytes"] = peak_bytes(settings, both)
    return times
