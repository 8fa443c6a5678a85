"""What a trainer logs: means of named numbers since the last log, and where the time went."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PHASES = ("rollout", "reward", "old", "ref", "train")


class Metrics:
    """Collects numbers under TRL's log keys until `flush`.

    device: whose work a phase's time waits for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Forgets everything, and starts the clock anew."""
        self._values: dict[str, list[float]] = defaultdict(list)
        self._seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._tokens = 0
        self._began = time.perf_counter()

    def add(self, values: dict[str, float]) -> None:
        """Adds one observation of each; NaN is left out of the mean."""
        for name, value in values.items():
            if value == value:
                self._values[name].append(float(value))

    def set(self, name: str, value: float) -> None:
        """Logs the latest value of a number that grows, not its mean."""
        self._values[name] = [float(value)]

    def count_tokens(self, tokens: int) -> None:
        """Adds completion tokens that were decoded, over all processes."""
        self._tokens += tokens

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a phase, one of `PHASES`, on the device."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._seconds[name] += time.perf_counter() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time that the block takes out of `step_time` and `tokens_per_second`: an evaluation's."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._began += time.perf_counter() - began

    def state(self) -> dict[str, list[float]]:
        """What was added since the last flush, for a checkpoint."""
        return dict(self._values)

    def load_state(self, values: dict[str, list[float]]) -> None:
        """Takes up what `state` gave."""
        self._values = defaultdict(list, values)

    def flush(self, optimizer_steps: int) -> dict[str, float]:
        """The means; seconds of an optimizer step (`step_time`) and of its phases; tokens decoded a second. Then
        everything starts anew."""
        now = time.perf_counter()
        steps = max(optimizer_steps, 1)
        logs = {name: sum(values) / len(values) for name, values in self._values.items()}
        logs["step_time"] = (now - self._began) / steps
        logs |= {f"time/{name}": seconds / steps for name, seconds in self._seconds.items()}
        logs["tokens_per_second"] = self._tokens / max(now - self._began, 1e-9)
        self.restart()
        return logs
