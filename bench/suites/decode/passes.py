"""Looking at a decoder through its model: passes counted, decodes cut short, time inside and outside the model.

A hook on the model's body sees every pass of every decoder, ours and others, without changing any of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...harness.timing import synchronize


class _EnoughError(Exception):
    """The passes asked for are done."""


@dataclass
class Passes:
    """Of one decode.

    Attributes:
        forwards: calls of the model.
        rows: canvases in all of them together.
    """

    forwards: int = 0
    rows: int = 0


def passes(model: Any, decode: Callable[[], object], most: int | None = None) -> Passes:
    """Runs `decode`, at most `most` whole steps of it, and counts the passes of `model` in it.

    A step begins with a pass and ends where the next pass begins.
    """
    found = Passes()

    def count(body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if found.forwards == most:
            raise _EnoughError
        found.forwards += 1
        found.rows += (args[0] if args else kwargs["input_ids"]).shape[0]

    handle = model.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        decode()
    except _EnoughError:
        pass
    finally:
        handle.remove()
    return found


@dataclass
class Split:
    """Seconds of one decode, or of its first steps.

    Attributes:
        whole: all of it.
        body: in the model's body, which every decoder has to run as often as it takes steps.
        head: in the LM head's module, where one ran: for ours the product and the scoring in one.
        passes: in it.
    """

    whole: float
    body: float
    head: float
    passes: Passes

    @property
    def forwards(self) -> int:
        return self.passes.forwards

    @property
    def outside(self) -> float:
        """Seconds outside the body: head, scoring, choosing, committing, and the loop."""
        return self.whole - self.body


def split(model: Any, decode: Callable[[], object], device: str) -> Split:
    """Times one decode inside and outside the model's body; on a GPU the device is waited for at every border."""
    with _timed(model.model, device) as body, _timed(model.lm_head, device) as head:
        synchronize(device)
        begin = time.perf_counter()
        found = passes(model, decode)
        synchronize(device)
        whole = time.perf_counter() - begin
    return Split(whole, sum(body), sum(head), found)


@contextmanager
def _timed(module: Any, device: str) -> Iterator[list[float]]:
    """Seconds of every call of a module."""
    seconds: list[float] = []
    begin = 0.0

    def enter(*_: Any) -> None:
        nonlocal begin
        synchronize(device)
        begin = time.perf_counter()

    def leave(*_: Any) -> None:
        synchronize(device)
        seconds.append(time.perf_counter() - begin)

    handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()
