"""The table of machine code, kept in table.json: what every kernel takes on every architecture."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gpu_free.machine_code import cuda_kernels, sass, tools, triton_kernels
from gpu_free.machine_code.cuda_kernels import Compiled
from gpu_free.machine_code.hot_loop import VECTOR_BYTES, HotPath, find_hot_path
from gpu_free.machine_code.occupancy import occupancy
from gpu_free.machine_code.streams import element_bytes, find_stream

ARCHS = ("80", "90a", "100", "120")
JSON = Path(__file__).with_name("table.json")
LANGUAGES: dict[str, Callable[[str], list[Compiled]]] = {
    "CUDA": cuda_kernels.compile_all,
    "Triton": triton_kernels.compile_all,
}


@dataclass(frozen=True)
class Row:
    """A kernel on an architecture."""

    threads: int  # of a block
    registers: int  # of a thread
    stack: int  # bytes of a thread
    spills: int  # instructions that move registers to or from local memory
    shared: int  # bytes of a block; for CUDA kernels without what a launch adds
    occupancy: float  # theoretical
    instructions: int  # of the whole kernel, padding left out
    vector_loads: int  # instructions that load 16 bytes or more from global memory
    tensor_core: int  # matrix instructions
    once: HotPath | None = None  # of a kernel that streams logits: the cheapest path with an exponential of each
    twice: HotPath | None = None  # with two exponentials: a second temperature, if there is such a path


def measure(language: str, arch: str, kernel: Compiled) -> Row:
    function = next(f for f in _functions(kernel.cubin) if f.name == kernel.symbol)
    resources = _resources(kernel.cubin, arch)[kernel.symbol]
    shared = resources.shared + kernel.dynamic_shared
    instructions = list(function.instructions())
    once = twice = None
    if stream := find_stream(language, kernel.name):
        size = element_bytes(kernel.name)
        once, twice = (find_hot_path(function, size, count, stream.load, stream.through) for count in (1, 2))
    return Row(
        threads=kernel.threads,
        registers=resources.registers,
        stack=resources.stack,
        spills=sum(i.spills for i in instructions),
        shared=shared,
        occupancy=round(occupancy(arch, kernel.threads, resources.registers, shared), 4),
        instructions=sum(i.name != "NOP" for i in instructions),
        vector_loads=sum(i.loaded_bytes >= VECTOR_BYTES for i in instructions),
        tensor_core=sum(i.tensor_core for i in instructions),
        once=once,
        twice=twice,
    )


def compile_rows(language: str, arch: str) -> dict[str, Row]:
    """Kernel -> row, compiled now or found in build/machine_code."""
    return {kernel.name: measure(language, arch, kernel) for kernel in LANGUAGES[language](arch)}


def tool_versions(language: str) -> dict[str, str]:
    """What the rows of a language depend on."""
    if language == "CUDA":
        return {"nvcc": tools.version("nvcc")}
    return {"triton": triton_kernels.triton_version()}


@cache
def _functions(cubin: Path) -> list[sass.Function]:
    return sass.parse(tools.disassemble(cubin))


@cache
def _resources(cubin: Path, arch: str) -> dict[str, tools.Resources]:
    return tools.resources(cubin, arch)


@dataclass(frozen=True)
class Table:
    versions: dict[str, dict[str, str]]  # language -> tool -> version
    rows: dict[str, dict[str, dict[str, Row]]]  # language -> architecture -> kernel -> row


def load() -> Table:
    stored = json.loads(JSON.read_text())
    rows = {
        language: {arch: {name: _row(row) for name, row in kernels.items()} for arch, kernels in archs.items()}
        for language, archs in stored["rows"].items()
    }
    return Table(stored["versions"], rows)


def store(table: Table) -> None:
    """Writes table.json, a kernel a line, so that a change shows as one."""
    languages = []
    for language, archs in table.rows.items():
        sections = []
        for arch, kernels in archs.items():
            body = ",\n".join(f"   {json.dumps(name)}: {json.dumps(_fields(row))}" for name, row in kernels.items())
            sections.append(f"  {json.dumps(arch)}: {{\n{body}}}")
        languages.append(f" {json.dumps(language)}: {{\n" + ",\n".join(sections) + "}")
    versions = json.dumps(table.versions)
    JSON.write_text(f'{{"versions": {versions},\n"rows": {{\n' + ",\n".join(languages) + "}}\n")


def _row(stored: dict[str, Any]) -> Row:
    paths = {name: HotPath(**stored[name]) for name in ("once", "twice") if name in stored}
    return Row(**{**stored, **paths})


def _fields(row: Row) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if value is not None}
