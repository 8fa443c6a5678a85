"""NVIDIA's command line tools: where they are, and what they say of a cubin."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from gpu_free.machine_code.occupancy import SYSTEM_SHARED

_RESOURCES = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")


@dataclass(frozen=True)
class Resources:
    registers: int  # of a thread
    stack: int  # bytes of a thread
    shared: int  # static, bytes of a block, without the system's


@cache
def find(name: str) -> str | None:
    """Path of cuobjdump, nvdisasm or nvcc: the first two come with Triton, as few CUDA toolkits install them."""
    spec = find_spec("triton")
    if spec is not None and spec.origin is not None:
        shipped = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name
        if shipped.exists():
            return str(shipped)
    return shutil.which(name)


def run(name: str, *arguments: str, cwd: Path | None = None) -> str:
    """What a tool prints, run in the folder `cwd`.

    Raises:
        RuntimeError: it is missing or it fails.
    """
    path = find(name)
    if path is None:
        raise RuntimeError(f"{name} is neither in the triton package nor on PATH")
    result = subprocess.run([path, *arguments], capture_output=True, text=True, cwd=cwd)
    if result.returncode != 0:
        raise RuntimeError(f"{name} {' '.join(arguments)}\n{result.stdout}{result.stderr}")
    return result.stdout


@cache
def version(name: str) -> str:
    """E.g. "13.0.88"."""
    found = re.search(r"V(\d+\.\d+\.\d+)", run(name, "--version"))
    assert found, f"{name} --version names no version"
    return found.group(1)


def resources(cubin: Path, arch: str) -> dict[str, Resources]:
    """Mangled name of every kernel -> what one launch of it occupies."""
    # From sm_90 on the system's share is counted with a block's own where it has any.
    system = 0 if arch == "80" else SYSTEM_SHARED
    return {
        name: Resources(int(registers), int(stack), max(int(shared) - system, 0))
        for name, registers, stack, shared in _RESOURCES.findall(run("cuobjdump", "-res-usage", str(cubin)))
    }


def largest_blocks(cubin: Path) -> dict[str, int]:
    """Mangled name -> threads of __launch_bounds__, for the kernels that have them."""
    bounds: dict[str, int] = {}
    name = ""
    awaited = False
    for line in run("cuobjdump", "-elf", str(cubin)).splitlines():
        if section := re.match(r"\.nv\.info\.(\S+)$", line):
            name = section.group(1)
        elif re.search(r"EIATTR_(MAX_THREADS|REQNTID)", line):
            awaited = True
        elif awaited and "Value:" in line:
            x, y, z = (int(word, 16) for word in line.split(":", 1)[1].split())
            bounds[name] = x * y * z
            awaited = False
    return bounds


def disassemble(cubin: Path) -> str:
    return run("nvdisasm", "-c", str(cubin))


def demangle(names: list[str]) -> list[str]:
    """C++ names of mangled ones, without parameters, return types and the package's namespace."""
    filter_ = shutil.which("c++filt")
    if filter_ is None:
        raise RuntimeError("c++filt is not on PATH: it comes with binutils")
    result = subprocess.run([filter_, "-p"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [re.sub(r"\bmdlm_fast::(cuda::)?", "", re.sub(r"^void ", "", line)) for line in result.stdout.splitlines()]
