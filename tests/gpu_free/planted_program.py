"""Runs one kernel of planted_kernels.cu on 510 numbers: `planted_program.py LIBRARY KERNEL`. For sanitizers, which end
the process."""

import ctypes
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Result(NamedTuple):
    error: str | None
    out: np.ndarray  # float32 [n]
    counter: int


def run_kernel(functions: ctypes.CDLL, name: str, numbers: np.ndarray) -> Result:
    """numbers: float32 [n], 16-byte aligned."""
    out = np.full_like(numbers, np.nan)
    counter = ctypes.c_uint32(0)
    functions.run_kernel.restype = ctypes.c_char_p
    arrays = [array.ctypes.data_as(ctypes.c_void_p) for array in (numbers, out)]
    message = functions.run_kernel(name.encode(), *arrays, ctypes.byref(counter), len(numbers))
    return Result(None if message is None else message.decode(), out, counter.value)


if __name__ == "__main__":
    # A buffer of exactly this size from malloc, so that the byte after its end is not the process's.
    n = 510
    memory = ctypes.CDLL(None).malloc
    memory.restype = ctypes.c_void_p
    buffer = (ctypes.c_float * n).from_address(memory(ctypes.c_size_t(4 * n)))
    given = np.frombuffer(buffer, np.float32)
    given[:] = 1
    print(run_kernel(ctypes.CDLL(str(Path(sys.argv[1]))), sys.argv[2], given).error)
