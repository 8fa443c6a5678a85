"""Logits that lie in memory, not in cache: one large random buffer, of which every call sees another part.

A decoder's logits come fresh from the head's GEMM and, at real sizes, lie in memory. A benchmark that scores one small
tensor again and again would read it from cache and flatter everybody. So the buffer is several times the last-level
cache and each call reads the next window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...harness.machine import cache_bytes

CACHES = 4  # times the last-level cache
MOST_BYTES = 1_300_000_000
SPREAD = 3.0  # standard deviation of the logits; at V = 126,464 the likeliest token then has p near 0.1
PERIOD = 16_777_259  # prime, so windows and rows of usual widths never meet the same numbers in the same columns
ALIGNMENT = 64  # bytes
HOP = 7919  # prime: windows follow each other far apart, or the prefetcher would have begun with the next one


class Arena:
    """A flat buffer of logits drawn from N(0, SPREAD^2), repeating after PERIOD numbers (they lie at other addresses).

    Args:
        dtype: of the logits.
        device: "cpu" or "cuda".
        size: bytes.
    """

    def __init__(self, dtype: torch.dtype, device: str, size: int) -> None:
        self.dtype, self.device = dtype, device
        generator = torch.Generator(device).manual_seed(0)
        numbers = torch.randn(PERIOD, device=device, generator=generator).mul_(SPREAD).to(dtype)
        self.buffer = torch.empty(size // dtype.itemsize, dtype=dtype, device=device)
        for start in range(0, self.buffer.numel(), PERIOD):
            part = self.buffer[start : start + PERIOD]
            part.copy_(numbers[: part.numel()])

    def window(self, i: int, rows: int, vocab: int) -> Tensor:
        """Logits [rows, vocab] of the i-th call, contiguous.

        Raises:
            ValueError: the buffer does not hold two such windows.
        """
        step = ALIGNMENT // self.dtype.itemsize
        stride = -(-rows * vocab // step) * step
        count = self.buffer.numel() // stride
        if count < 2:
            raise ValueError(f"two windows [{rows}, {vocab}] are larger than the arena of {self.buffer.nbytes:,} bytes")
        start = i * HOP % (count - (count % HOP == 0)) * stride
        return self.buffer[start : start + rows * vocab].view(rows, vocab)


_current: Arena | None = None


def arena(dtype: torch.dtype, device: str) -> Arena:
    """The arena of this dtype. One exists at a time: asking for another dtype frees the last."""
    global _current
    if _current is None or (_current.dtype, _current.device) != (dtype, device):
        release()
        _current = Arena(dtype, device, size(device))
    return _current


def release() -> None:
    """Frees the arena."""
    global _current
    _current = None


def size(device: str) -> int:
    """Bytes of an arena: CACHES times the last-level cache, and large enough to hold the largest window twice."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device == "cuda" else cache_bytes()
    largest = 512 * 262_144 * 4  # bytes of the largest window of the grid
    return min(MOST_BYTES, max(CACHES * cache, 2 * largest + 2 * ALIGNMENT))
