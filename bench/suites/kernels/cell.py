"""From an op's inputs, sides and check to a record: the part of a measurement that all ops share."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...harness.memory import peak_bytes
from ...harness.results import ONE_THREAD, OURS, READ, Record, timed_sides
from ...harness.timing import Candidate, interleave
from ..settings import Cell, Settings


@dataclass
class Prepared:
    """Inputs in memory and what is done with them.

    Attributes:
        candidates: the sides, "ours" first.
        check: compares the candidates' answers on the same inputs; returns how they agree, by side. Raises
            AssertionError where they do not.
        work: of `Record.work`.
        read: the tensor that the i-th call must read at least; the side "read" reads it and does nothing else. None:
            there is no such side.
        peaks: calls whose peak memory is measured, by side; multiplied by the candidate's factor, as times are.
        reasons: why a side is faster than ours, shown only where it is.
    """

    candidates: list[Candidate]
    check: Callable[[], dict[str, str]]
    work: dict[str, float]
    read: Callable[[int], Tensor] | None = None
    peaks: dict[str, Callable[[], object]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class KernelCell(Cell):
    """A cell whose inputs, sides and check can also be had apart from its measurement."""

    prepare: Callable[[], Prepared]


def kernel_cell(case: dict[str, Any], prepare: Callable[[], Prepared], settings: Settings) -> KernelCell:
    """A cell of the suite. `prepare` makes the inputs, when the cell is measured; they are freed after it."""
    return KernelCell("kernels", case, lambda: measure(case, prepare, settings), prepare)


def measure(case: dict[str, Any], prepare: Callable[[], Prepared], settings: Settings) -> Record:
    """Checks, then times all sides in interleaved rounds, then measures peaks of memory.

    On the CPU ours also runs on one thread, where torch has more.

    Raises:
        AssertionError: a side's answer is not ours.
    """
    gc.freeze()  # or every search for garbage would go through all modules, which takes a fifth of a second
    try:
        return measured(case, prepare(), settings)
    finally:
        gc.unfreeze()


def measured(case: dict[str, Any], prepared: Prepared, settings: Settings) -> Record:
    """`measure` of inputs in memory."""
    agreement = prepared.check()
    candidates = [*prepared.candidates, *added(prepared, settings.device)]
    sides = timed_sides(interleave(candidates, device=settings.device, seconds=settings.seconds))
    gc.freeze()  # again: `interleave` ends it
    for candidate in candidates:
        side = sides[candidate.name]
        side.agreement = agreement.get(candidate.name)
        side.extrapolated_from = candidate.extrapolated_from
        if candidate.name in prepared.peaks:
            peak = peak_bytes(prepared.peaks[candidate.name], settings.device)
            side.peak_bytes = round(peak * candidate.factor)
        if side.ratio is not None and side.ratio.median < 1:
            side.reason = prepared.reasons.get(candidate.name)
    return Record("kernels", case, sides, prepared.work)


def added(prepared: Prepared, device: str) -> list[Candidate]:
    """Sides that follow from the others: ours on one thread, and reading alone."""
    result = []
    ours = next((candidate for candidate in prepared.candidates if candidate.name == OURS), None)
    if ours is not None and device == "cpu" and torch.get_num_threads() > 1:
        result.append(replace(ours, name=ONE_THREAD, threads=1))
    if prepared.read is not None and (read := reader(device)) is not None:
        tensor_of = prepared.read
        result.append(Candidate(READ, lambda i: read(tensor_of(i))))
    return result


def reader(device: str) -> Callable[[Tensor], object] | None:
    """Reads a contiguous tensor once, at the speed of the memory, and uses all of it; None without the C++ library.

    On a GPU it adds up 32-bit words, whatever they mean.
    """
    if device == "cuda":
        return lambda tensor: tensor.view(torch.int32).sum()
    if hasattr(torch.ops.mdlm_fast_cpp, "read_floor"):
        return torch.ops.mdlm_fast_cpp.read_floor
    return None
