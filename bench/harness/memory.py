"""The most memory that a call has in use beyond what was there before it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

MIB = 2**20


def resident(field: str) -> int:
    """VmRSS (resident memory) or VmHWM (the most since the mark was reset) of this process, bytes. Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


class PeakMeter:
    """The most memory in use since `start`, beyond what was in use then and `expected` bytes.

    On the CPU it is the rise of the process's resident memory, which the kernel records; small blocks that the
    allocator had at hand are not seen, so read it as exact to about a megabyte.
    """

    def __init__(self, device: str) -> None:
        self._cuda = torch.device(device).type == "cuda"

    def start(self, expected: int = 0) -> None:
        """expected: bytes that will be allocated and do not count, e.g. gradients."""
        gc.collect()
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._base = torch.cuda.memory_allocated() + expected
            return
        ctypes.CDLL(None).malloc_trim(0)  # or memory freed before would be used again unseen
        self._base = resident("VmRSS") + expected
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark

    def stop(self) -> int:
        """Bytes, at least 0."""
        peak = torch.cuda.max_memory_allocated() if self._cuda else resident("VmHWM")
        return max(0, int(peak) - self._base)


def peak_bytes(call: Callable[[], object], device: str = "cpu", expected: int = 0) -> int:
    """Bytes at the peak of one call, beyond what was in use before and `expected` bytes."""
    meter = PeakMeter(device)
    meter.start(expected)
    call()
    return meter.stop()
