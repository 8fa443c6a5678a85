"""Counts what Triton's interpreter loads and stores. Needs TRITON_INTERPRET=1 from the start of the process.

    TRITON_INTERPRET=1 python tests/gpu_free/triton_bytes.py     # prints, as JSON, the calls of memory_traffic.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import numpy as np
from gpu_free.memory_traffic import measure_all
from gpu_free.shim_library import Counters
from triton.runtime import interpreter

SECTOR = 32


class InterpreterCounters:
    """Replaces the functions through which the interpreter reaches memory by ones that count, for good."""

    def __init__(self) -> None:
        self._requested = [0, 0]  # loaded, stored
        self._from_memory = [0, 0]
        self._sectors: list[list[np.ndarray]] = [[], []]  # of the launch that runs
        self._atomics = self._launches = 0
        builder = interpreter.InterpreterBuilder
        load, store, rmw = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw

        def counted_load(this: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
            self._count(0, ptrs, mask)
            return load(this, ptrs, mask, *rest)

        def counted_store(this: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self._count(1, ptrs, mask)
            return store(this, ptrs, value, mask, *rest)

        def counted_rmw(this: Any, operation: Any, ptr: Any, val: Any, mask: Any, *rest: Any) -> Any:
            self._count(0, ptr, mask)
            self._atomics += self._count(1, ptr, mask)
            return rmw(this, operation, ptr, val, mask, *rest)

        builder.create_masked_load = counted_load
        builder.create_masked_store = counted_store
        builder.create_atomic_rmw = counted_rmw
        launch = interpreter.GridExecutor.__call__

        def counted_launch(this: Any, *arguments: Any, **options: Any) -> Any:
            result = launch(this, *arguments, **options)
            self._launches += 1
            for kind, touched in enumerate(self._sectors):
                self._from_memory[kind] += SECTOR * len(np.unique(np.concatenate(touched))) if touched else 0
                touched.clear()
            return result

        interpreter.GridExecutor.__call__ = counted_launch

    def _count(self, kind: int, ptrs: Any, mask: Any) -> int:
        """How many elements; `kind` 0: loaded, 1: stored."""
        addresses = np.broadcast_to(ptrs.data, mask.data.shape)[mask.data.astype(bool)]
        bits = ptrs.get_element_ty().primitive_bitwidth
        self._requested[kind] += addresses.size * max(bits // 8, 1)
        self._sectors[kind].append(np.unique(addresses // SECTOR))
        return addresses.size

    def take(self) -> Counters:
        counted = Counters(*self._requested, *self._from_memory, self._atomics, self._launches)
        self._requested, self._from_memory = [0, 0], [0, 0]
        self._atomics = self._launches = 0
        return counted


if __name__ == "__main__":
    table = measure_all("triton", InterpreterCounters().take)
    print(json.dumps({name: vars(traffic) for name, traffic in table.items()}))
