"""A library that was built against the host shim: its ops as a backend, its schedule and its counters."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from mdlm_fast.ops import _registry
from mdlm_fast.ops._library import compiled_ops

NAMESPACE = "mdlm_fast_shim"
LIBRARY_VARIABLE = "MDLM_FAST_SHIM_LIBRARY"
SCHEDULES = ("forward", "reverse", "random:1", "random:2", "random:3")


@dataclass(frozen=True)
class Counters:
    """Bytes of global memory, as requested and in the 32-byte sectors that each launch touched; atomics on it; launches
    of kernels and memsets."""

    bytes_loaded: int
    bytes_stored: int
    sector_bytes_loaded: int
    sector_bytes_stored: int
    atomics: int
    launches: int

    @property
    def bytes(self) -> int:
        return self.bytes_loaded + self.bytes_stored

    @property
    def sector_bytes(self) -> int:
        return self.sector_bytes_loaded + self.sector_bytes_stored


class Shim:
    """The controls of a loaded library."""

    def __init__(self, library: Path) -> None:
        self.functions = ctypes.CDLL(str(library))

    def set_schedule(self, name: str) -> None:
        """`name`: forward, reverse or random:SEED. Other names: ValueError."""
        if self.functions.mdlm_fast_shim_set_schedule(name.encode()) != 0:
            raise ValueError(f"schedule {name!r} is not forward, reverse or random:SEED")

    def set_multiprocessors(self, count: int) -> None:
        self.functions.mdlm_fast_shim_set_multiprocessors(count)

    def take_counters(self) -> Counters:
        """What was counted since the last call."""
        words = (ctypes.c_uint64 * len(fields(Counters)))()
        self.functions.mdlm_fast_shim_take_counters(words)
        return Counters(*words)


def register_shim(library: Path) -> Shim:
    """Load the ops of `library` and register them as the backend "shim", which runs only where it is asked for."""
    torch.ops.load_library(str(library))
    dtypes = frozenset({torch.float32, torch.bfloat16, torch.float16})
    backend = _registry.Backend("shim", frozenset({"cpu"}), dtypes, compiled_ops(NAMESPACE))
    _registry.register_backend(backend)
    return Shim(library)


@contextmanager
def registered(library: Path) -> Iterator[Shim]:
    """`register_shim` for the time of a `with` block: other tests of the process see the usual backends."""
    before = _registry._backends.copy()
    try:
        yield register_shim(library)
    finally:
        _registry._backends.clear()
        _registry._backends.update(before)
        _registry._cache.clear()


def register_from_environment() -> Shim | None:
    """`register_shim` of the library that MDLM_FAST_SHIM_LIBRARY names, if it names one."""
    library = os.environ.get(LIBRARY_VARIABLE)
    return register_shim(Path(library).resolve()) if library else None
