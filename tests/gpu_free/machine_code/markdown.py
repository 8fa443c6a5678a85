"""docs/machine_code.md, written from the table."""

from __future__ import annotations

from gpu_free.machine_code.cuda_kernels import ROOT
from gpu_free.machine_code.gates import GATED_ARCH, GATES
from gpu_free.machine_code.hot_loop import HotPath
from gpu_free.machine_code.table import Row, Table

PATH = ROOT / "docs" / "machine_code.md"
HEADING = """# Machine code of the GPU kernels

Every CUDA and Triton kernel compiled ahead of time, without a GPU, for each architecture. Written by
`PYTHONPATH=tests python -m gpu_free.machine_code.update`; `tests/gpu_free/test_machine_code.py` compiles the kernels
again and compares. Nothing here was measured on a GPU: these are properties of the code.

The hot path is the cheapest way around the loop that loads logits 16 bytes at a time and exponentiates each of them
(`tests/gpu_free/machine_code/hot_loop.py`), or through the whole kernel where a thread's share of a tile has no loop.
"Second temperature" is the cheapest way that takes two exponentials of every logit. MUFU is the unit that
exponentiates: 16 lanes of a multiprocessor's 128. No kernel spills registers or has a stack frame.

Reading 0 of a CUDA kernel is that of rows that begin at multiples of 16 bytes, 1 of rows that do not, 2 of either, 3 of
guided rows. Shared memory and occupancy of `select_commit_kernel` and `remask_kernel` are without what a launch adds:
a few bytes per position of a sequence.
"""
COLUMNS = (
    "kernel",
    "threads",
    "registers",
    "shared, bytes",
    "occupancy",
    "instructions",
    "16-byte loads",
    "tensor core",
    "hot path: elements",
    "per element: instructions",
    "MUFU",
    "second temperature: instructions",
    "MUFU",
)


def render(table: Table) -> str:
    versions = ", ".join(f"{tool} {number}" for tools in table.versions.values() for tool, number in tools.items())
    parts = [HEADING, f"Compiled with {versions}.\n", "## Gates\n", _gates(table)]
    for language, archs in table.rows.items():
        for arch, rows in archs.items():
            parts.append(f"## {language}, sm_{arch}\n")
            parts.append(_markdown_table(COLUMNS, [_cells(name, row) for name, row in rows.items()]))
    return "\n".join(parts)


def _gates(table: Table) -> str:
    lines = []
    for gate in GATES:
        paths = [gate.path(row) for row in gate.rows(table.rows[gate.language][GATED_ARCH]).values()]
        worst = max((path for path in paths if path), key=lambda path: path.instructions_per_element)
        mufu = max(path.mufu_per_element for path in paths if path)
        lines.append(
            [
                gate.what,
                gate.language,
                f"{worst.instructions_per_element:.2f}",
                f"{gate.instructions:g}",
                f"{mufu:.3f}",
                f"{gate.mufu:g}",
            ]
        )
    heading = f"Per bfloat16 element of the hot path on sm_{GATED_ARCH}, the kernel that takes the most.\n\n"
    return heading + _markdown_table(("work", "language", "instructions", "at most", "MUFU", "at most"), lines)


def _cells(name: str, row: Row) -> list[str]:
    counts = [row.threads, row.registers, row.shared, f"{row.occupancy:.0%}", row.instructions, row.vector_loads]
    once = [str(row.once.elements) if row.once else "", *_per_element(row.once)]
    return [f"`{name}`", *map(str, counts), str(row.tensor_core or ""), *once, *_per_element(row.twice)]


def _per_element(path: HotPath | None) -> tuple[str, str]:
    return (f"{path.instructions_per_element:.2f}", f"{path.mufu_per_element:.3f}") if path else ("", "")


def _markdown_table(columns: tuple[str, ...], lines: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [list(columns), rule, *lines]) + "\n"
