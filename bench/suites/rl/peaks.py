"""Peak memory of an iteration, each side in a process of its own, in which nothing else was allocated before.

It is what an iteration takes beyond weights, gradients and optimizer state, which are there before it begins.
"""

from __future__ import annotations

import ctypes
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.context import BaseContext

import torch

from ...harness.memory import PeakMeter
from ...harness.results import OURS
from .case import WARM_UP_STEPS, Case
from .sides import OurSide, PlainSide

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def peak_bytes(case: Case, name: str) -> int:
    """Of one iteration of the side of this name, in a new process."""
    if torch.device(case.device).type == "cuda":  # no copy of a process that has asked CUDA for its devices works
        context: BaseContext = get_context("spawn")
    else:
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__])  # imported once: seconds saved for every process after the first
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(begin_and_peak, case, name, torch.get_num_threads()).result()


def begin_and_peak(case: Case, name: str, threads: int) -> int:
    """`peak_here` in a process that does nothing else."""
    torch.set_num_threads(threads)
    if sys.platform == "linux":  # every tensor of a megabyte gets pages of its own, which go back when it is freed
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
    return peak_here(case, name)


def peak_here(case: Case, name: str) -> int:
    """Of one iteration of a side in this process, after a short one."""
    return of_ours(case) if name == OURS else of_plain(case, name)


def of_plain(case: Case, name: str) -> int:
    """Bytes at the peak of the released way of this name."""
    plain, meter = PlainSide(case, name), PeakMeter(case.device)
    plain.run(WARM_UP_STEPS)
    plain.optimizer.zero_grad()
    meter.start(gradient_bytes(plain.model))
    plain.run(case.steps)
    return meter.stop()


def of_ours(case: Case) -> int:
    """Bytes at the peak of our trainer."""
    ours, meter = OurSide(case, 1), PeakMeter(case.device)
    found: list[int] = []

    def begin(number: int) -> None:
        if number:
            meter.start(gradient_bytes(ours.model))

    def end(number: int, _: dict[str, float]) -> bool:
        if number:
            found.append(meter.stop())
        return True

    ours.run(begin, end)
    return found[0]


def gradient_bytes(model: torch.nn.Module) -> int:
    """Of the gradients that are not there yet."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad and p.grad is None)
