"""Seconds of candidates in interleaved rounds.

In every round each candidate runs once, in an order drawn anew, so a slow spell of the machine meets all of them and
none always runs in the cache that the same neighbour left. A sample is the mean over as many calls as last
`LEAST_SAMPLE`, so that neither the clock nor a single interrupt decides it.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[int], object]

LEAST_SAMPLE = 2e-3  # seconds
MOST_CALLS = 1000  # in a sample
LEAST_ROUNDS = 3
LONG_CALL = 1.0  # seconds; one call warms up where it takes longer


@dataclass(frozen=True)
class Candidate:
    """Something to time.

    Attributes:
        name: of the side, e.g. "ours" or "LLaDA".
        call: what is timed; its argument counts up from call to call, to choose among inputs.
        threads: torch's CPU threads for it, None: as they are.
        factor: what a sample is multiplied by, where `call` does only a part of the work (then say which part in
            `extrapolated_from`).
        extrapolated_from: e.g. "16 of 512 rows".
    """

    name: str
    call: Call
    threads: int | None = None
    factor: float = 1.0
    extrapolated_from: str | None = None


def synchronize(device: str) -> None:
    """Waits until a GPU has done what it was given; a CPU has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Wall-clock seconds of a call; on a GPU until the device has finished it."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._calls = 0

    def sample(self, candidate: Candidate, calls: int) -> float:
        """Mean seconds of `calls` calls, times the candidate's factor."""
        before = torch.get_num_threads()
        if candidate.threads is not None:
            torch.set_num_threads(candidate.threads)
        try:
            synchronize(self._device)
            start = time.perf_counter()
            for _ in range(calls):
                candidate.call(self._calls)
                self._calls += 1
            synchronize(self._device)
            return (time.perf_counter() - start) / calls * candidate.factor
        finally:
            if candidate.threads is not None:
                torch.set_num_threads(before)


def interleave(
    candidates: Sequence[Candidate], *, device: str = "cpu", seconds: float = 1.0, most_rounds: int = 25
) -> dict[str, list[float]]:
    """Samples of every candidate, round by round.

    Args:
        seconds: each candidate stops taking part when it has used this much and has LEAST_ROUNDS samples. So slow
            candidates have fewer rounds, and their samples belong to the first rounds.
        most_rounds: of every candidate.

    Returns:
        seconds of a call by candidate, without what warmed up. Each sample sets the calls of the next.
    """
    stopwatch = Stopwatch(device)
    order = random.Random(0)
    calls = {}
    for candidate in candidates:
        first = stopwatch.sample(candidate, 1) / candidate.factor
        if first < LONG_CALL:  # the first call may have loaded or allocated
            first = stopwatch.sample(candidate, 3 if first < LEAST_SAMPLE else 1) / candidate.factor
        calls[candidate.name] = calls_in_a_sample(first)
    samples: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    used = dict.fromkeys(samples, 0.0)
    collecting = gc.isenabled()
    gc.collect()
    gc.freeze()  # what is there stays; a collection between rounds looks at what they left alone
    try:
        for _ in range(most_rounds):
            running = [c for c in candidates if len(samples[c.name]) < LEAST_ROUNDS or used[c.name] < seconds]
            if not running:
                break
            order.shuffle(running)
            gc.collect()
            gc.disable()
            for candidate in running:
                sample = stopwatch.sample(candidate, calls[candidate.name])
                samples[candidate.name].append(sample)
                used[candidate.name] += sample / candidate.factor * calls[candidate.name]
                calls[candidate.name] = calls_in_a_sample(sample / candidate.factor)
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
    return samples


def calls_in_a_sample(seconds: float) -> int:
    """How many calls of so many seconds last LEAST_SAMPLE."""
    return max(1, min(MOST_CALLS, round(LEAST_SAMPLE / max(seconds, 1e-9))))
