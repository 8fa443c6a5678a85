"""Time on the device: CUDA events around calls, and replays of CUDA graphs, which leave out the cost of launching."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.gpu_check.settings import Settings

Call = Callable[[int], object]

ROTATED_BYTES = 256 << 20  # several times the second-level cache, so that each call reads its input from memory
MOST_COPIES = 256


def copies(bytes_each: int, settings: Settings) -> int:
    """How many sets of inputs to rotate."""
    if settings.dry:
        return 2
    return min(MOST_COPIES, max(3, -(-ROTATED_BYTES // max(1, bytes_each))))


def median(values: list[float]) -> float:
    return statistics.median(values)


class Clock:
    """Seconds of calls; the argument of a call counts up, to choose among rotated inputs."""

    def __init__(self, settings: Settings) -> None:
        self.cuda = settings.device == "cuda"
        self.dry = settings.dry

    def rounds(self, call: Call, count: int, prepare: Callable[[], object] | None = None) -> list[float]:
        """Seconds of each of `count` calls after three to warm up, the cost of launching included where the device
        waits for it. `prepare` runs before each call and is not timed."""
        count = 2 if self.dry else count
        times: list[float] = []
        events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        for i in range(-3, count):
            if prepare is not None:
                prepare()
            if self.cuda:
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                call(i + 3)
                end.record()
                events.append((start, end))
            else:
                begin = time.perf_counter()
                call(i + 3)
                times.append(time.perf_counter() - begin)
        if self.cuda:
            torch.cuda.synchronize()
            return [start.elapsed_time(end) / 1e3 for start, end in events[3:]]
        return times[3:]

    def graph(self, call: Call, calls: int, rounds: int = 20, prepare: Callable[[], object] | None = None) -> float:
        """Median seconds of a call inside a CUDA graph of `calls` calls in a row."""
        assert self.cuda
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for i in range(3):
                call(i)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(calls):
                call(i)
        return median(self.rounds(lambda i: graph.replay(), rounds, prepare)) / calls


def measure(
    settings: Settings,
    call: Call,
    *,
    calls: int,
    rounds: int = 20,
    graph: bool = True,
    prepare: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Time of a call in two ways.

    Returns:
        call_us: median over rounds, launches included. device_us: the same from a graph of `calls` calls, or call_us
        where it cannot be captured; `graph` says which.
    """
    clock = Clock(settings)
    each = [seconds * 1e6 for seconds in clock.rounds(call, max(rounds, min(calls, 50)), prepare)]
    result: dict[str, Any] = {"call_us": median(each), "call_us_least": min(each), "graph": False}
    result["device_us"] = result["call_us"]
    if graph and clock.cuda:
        try:
            result["device_us"] = clock.graph(call, calls, rounds, prepare) * 1e6
            result["graph"] = True
        except RuntimeError as error:
            torch.cuda.synchronize()
            result["not_captured"] = str(error).strip().splitlines()[0][:200]
    return result


def peak_bytes(settings: Settings, call: Call) -> int:
    """Most memory allocated during a call, beyond what was there before."""
    if settings.device != "cuda":
        call(0)
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(0)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
