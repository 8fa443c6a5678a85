"""What no kernel may do, and what the hot loops may cost."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpu_free.machine_code.hot_loop import HotPath
from gpu_free.machine_code.streams import find_stream
from gpu_free.machine_code.table import Row


@dataclass(frozen=True)
class Gate:
    """A ceiling for the hot path of the kernels of a language whose names match, on sm_90a."""

    what: str
    language: str
    kernel: str  # regular expression
    exponentials: int  # 1: one temperature; 2: two
    instructions: float  # per element
    mufu: float  # per element

    def rows(self, rows: dict[str, Row]) -> dict[str, Row]:
        """Those that the gate is for."""
        return {name: row for name, row in rows.items() if re.search(self.kernel, name)}

    def path(self, row: Row) -> HotPath | None:
        return row.twice if self.exponentials == 2 else row.once


# Reading 0: rows that begin at multiples of 16 bytes. The last argument: margin and entropy too.
_CUDA = r"score_(partials|greedy)_kernel<bfloat16, \(Reading\)0, "
_TRITON = "score_partials_kernel: "
GATES = (
    Gate("argmax and log-prob", "CUDA", _CUDA + "false", 1, 8.0, 1.15),
    Gate("everything, one temperature", "CUDA", _CUDA + "true", 1, 13.0, 1.15),
    Gate("everything, two temperatures", "CUDA", _CUDA + "true", 2, 20.0, 2.2),
    Gate("argmax and log-prob", "Triton", _TRITON + "argmax and log-prob, bfloat16$", 1, 8.0, 1.15),
    Gate("everything, one temperature", "Triton", _TRITON + "everything, bfloat16$", 1, 14.0, 1.15),
    Gate("everything, two temperatures", "Triton", _TRITON + "everything, bfloat16$", 2, 20.0, 2.2),
)
GATED_ARCH = "90a"
MATRIX_KERNELS = "head_gemm_kernel"


def find_faults(language: str, arch: str, rows: dict[str, Row]) -> list[str]:
    """A line for every kernel that spills, has a stack frame, lacks vector loads or costs more than its gate."""
    faults = []
    for name, row in rows.items():
        if row.spills or row.stack:
            faults.append(f"sm_{arch} {name}: {row.spills} spills, {row.stack} bytes of stack")
        if not row.tensor_core and re.search(MATRIX_KERNELS, name):
            faults.append(f"sm_{arch} {name}: no tensor core instructions")
        if row.once is None and find_stream(language, name):
            faults.append(f"sm_{arch} {name}: no way loads logits 16 bytes at a time and exponentiates each")
    for gate in GATES:
        if gate.language != language or arch != GATED_ARCH:
            continue
        gated = gate.rows(rows)
        if not gated:
            faults.append(f"{gate.what}: no {language} kernel matches {gate.kernel!r}")
        for name, row in gated.items():
            faults += [f"sm_{arch} {name} ({gate.what}): {fault}" for fault in _exceeded(gate, row)]
    return faults


def _exceeded(gate: Gate, row: Row) -> list[str]:
    path = gate.path(row)
    if path is None:
        return [f"no path with {gate.exponentials} exponentials per element"]
    faults = []
    if path.instructions_per_element > gate.instructions:
        faults.append(f"{path.instructions_per_element:.2f} instructions per element, at most {gate.instructions}")
    if path.mufu_per_element > gate.mufu:
        faults.append(f"{path.mufu_per_element:.3f} MUFU per element, at most {gate.mufu}")
    if path.scalar_loads * 8 > path.elements:
        faults.append(f"{path.scalar_loads} narrow loads for {path.elements} elements")
    if path.inner_loops or path.calls:
        faults.append(f"{path.inner_loops} loops and {path.calls} calls inside, of which the counts know too little")
    return faults
