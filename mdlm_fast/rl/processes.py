"""What the processes of one run tell each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class OtherProcessFailed(RuntimeError):
    """Another process raised an error, and this one stops with it."""


class Processes:
    """Sums, gathers and maxima over the processes of a run; the identity for one process."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    @property
    def count(self) -> int:
        """Number of processes."""
        return int(self._accelerator.num_processes)

    @property
    def index(self) -> int:
        """Number of this process, from 0."""
        return int(self._accelerator.process_index)

    @property
    def must_march_in_step(self) -> bool:
        """Whether every forward pass is a collective (sharded weights), so that all must run the same number."""
        return self.count > 1 and str(self._accelerator.distributed_type).split(".")[-1] in ("FSDP", "DEEPSPEED")

    def maximum(self, value: int) -> int:
        """The largest of every process's value."""
        if self.count == 1:
            return value
        mine = torch.tensor([value], device=self._accelerator.device)
        return int(self._accelerator.gather(mine).max())

    @contextmanager
    def raising_together(self) -> Iterator[None]:
        """For a block in which processes do not talk to each other: if it raises in one, it raises in all, so that none
        waits for another in vain.

        Raises:
            OtherProcessFailed: in the processes where the block itself did not."""
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        failed = self.maximum(int(error is not None))
        if error is not None:
            raise error
        if failed:
            raise OtherProcessFailed("another process failed, whose message says why")

    def total(self, values: Tensor) -> Tensor:
        """The sum over processes of [n] tensors; shorter ones are padded with zeros, so the result may be longer."""
        if self.count == 1:
            return values
        length = self.maximum(values.shape[0])
        padded = torch.nn.functional.pad(values, (0, length - values.shape[0]))
        return self._accelerator.reduce(padded, "sum")

    def gather(self, values: Tensor) -> Tensor:
        """[processes * n, ...] from [n, ...] of each, in the order of the processes."""
        return values if self.count == 1 else self._accelerator.gather(values.contiguous())

    def gather_objects(self, values: list[Any]) -> list[Any]:
        """The lists of all processes as one, of objects that can be pickled."""
        if self.count == 1:
            return values
        from accelerate.utils import gather_object

        return list(gather_object(values))

    def own(self, gathered: Tensor) -> Tensor:
        """This process's part of what `gather` gave."""
        size = gathered.shape[0] // self.count
        first = self._accelerator.process_index * size
        return gathered[first : first + size]

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean over the processes that have a name; all processes must call it."""
        if self.count == 1:
            return values
        from accelerate.utils import gather_object

        names: dict[str, list[float]] = {}
        for found in gather_object([values]):
            for name, value in found.items():
                names.setdefault(name, []).append(value)
        return {name: sum(found) / len(found) for name, found in names.items()}
