"""The machine's limits, measured in the same run: how fast memory can be read, and matrices multiplied."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...harness.results import CEILING, Record, timed_sides
from ...harness.timing import Candidate, interleave
from ..settings import Cell, Settings
from . import arena as arenas
from .cell import reader
from .grid import DTYPES, Shape

WINDOW = Shape(torch.bfloat16, 512, 126_464)  # 130 MB
SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices: large enough to be bound by arithmetic


def cells(settings: Settings) -> Iterator[Cell]:
    """With one thread and with all that torch uses."""
    threads = sorted({1, torch.get_num_threads()}) if settings.device == "cpu" else [torch.get_num_threads()]
    for count in threads:
        if reader(settings.device) is not None:
            yield read_cell(settings, count)
        for dtype in DTYPES:
            yield product_cell(settings, dtype, count)


def read_cell(settings: Settings, threads: int) -> Cell:
    """Reading windows of 130 MB of a buffer much larger than the cache."""
    case = {"op": "read", "threads": threads}

    def measure() -> Record:
        arena, read = arenas.arena(WINDOW.dtype, settings.device), reader(settings.device)
        assert read is not None
        candidate = Candidate(CEILING, lambda i: read(arena.window(i, WINDOW.rows, WINDOW.vocab)), threads)
        samples = interleave([candidate], device=settings.device, seconds=settings.seconds)
        return Record("kernels", case, timed_sides(samples, CEILING), {"bytes": WINDOW.nbytes})

    return Cell("kernels", case, measure)


def product_cell(settings: Settings, dtype: torch.dtype, threads: int) -> Cell:
    """The library's product of two square matrices."""
    case = {"op": "matrix product", "dtype": str(dtype).removeprefix("torch."), "threads": threads}

    def measure() -> Record:
        side = SIDE[settings.device]
        a, b = (torch.randn(side, side, device=settings.device).to(dtype) for _ in range(2))
        samples = interleave(
            [Candidate(CEILING, lambda i: a @ b, threads)], device=settings.device, seconds=settings.seconds
        )
        return Record("kernels", case, timed_sides(samples, CEILING), {"operations": 2.0 * side**3})

    return Cell("kernels", case, measure)
