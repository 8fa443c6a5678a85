"""The CUDA kernels of csrc/cuda as cubins, compiled with the flags of setup.py. Needs nvcc, no GPU."""

from __future__ import annotations

import hashlib
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gpu_free.machine_code import tools

ROOT = Path(__file__).parents[3]
BUILD = ROOT / "build" / "machine_code"
FLAGS = ("-O3", "-std=c++20")
_INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)


@dataclass(frozen=True)
class Compiled:
    """A kernel of one cubin, and the shape of its launches."""

    name: str  # how the table names it
    symbol: str  # how the cubin names it
    cubin: Path
    threads: int
    dynamic_shared: int  # bytes of a block


def sources() -> list[Path]:
    return sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def compile_all(arch: str) -> list[Compiled]:
    """Every kernel of every source for one architecture ("80", "90a", "100", "120"), by name.

    Taken from the package's library where it has been built with nvcc from these sources; compiled otherwise.

    Raises:
        RuntimeError: a source does not compile, or a kernel lacks the __launch_bounds__ that tell its block size.
    """
    kernels = []
    for cubin in _built(arch) or _compile_sources(arch):
        bounds = tools.largest_blocks(cubin)
        symbols = sorted(tools.resources(cubin, arch))
        for symbol, name in zip(symbols, tools.demangle(symbols), strict=True):
            if symbol not in bounds:
                raise RuntimeError(f"{name} has no __launch_bounds__: its registers are not fitted to its block size")
            kernels.append(Compiled(name, symbol, cubin, bounds[symbol], dynamic_shared=0))
    return sorted(kernels, key=lambda kernel: kernel.name)


def _built(arch: str) -> list[Path]:
    """Cubins of the library that `make` builds; none if it is older than a source or has none for the architecture."""
    library = ROOT / "mdlm_fast" / "_C.abi3.so"
    files = [file for folder in ("cuda", "common") for file in (ROOT / "csrc" / folder).iterdir()]
    if not library.exists() or library.stat().st_mtime < max(file.stat().st_mtime for file in files):
        return []
    folder = BUILD / f"built-{arch}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        tools.run("cuobjdump", "-xelf", f"sm_{arch}.cubin", str(library), cwd=folder)
    except RuntimeError:  # built without nvcc: no device code at all
        return []
    return sorted(folder.glob("*.cubin"))


def _compile_sources(arch: str) -> list[Path]:
    """Cubins kept in build/machine_code, made anew when a source or a header that it includes has changed."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda source: _compile(source, arch), sources()))


def _compile(source: Path, arch: str) -> Path:
    digest = hashlib.sha256(f"{tools.version('nvcc')} {FLAGS} {arch}".encode())
    for file in sorted(_with_headers(source)):
        digest.update(file.read_bytes())
    cubin = BUILD / f"{source.stem}-{arch}-{digest.hexdigest()[:16]}.cubin"
    if not cubin.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        for old in BUILD.glob(f"{source.stem}-{arch}-*.cubin"):
            old.unlink(missing_ok=True)
        unfinished = cubin.with_suffix(".unfinished")
        include = f"-I{ROOT / 'csrc'}"
        target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
        tools.run("nvcc", "-cubin", *FLAGS, include, target, str(source), "-o", str(unfinished))
        unfinished.rename(cubin)
    return cubin


def _with_headers(source: Path) -> set[Path]:
    """The file and the headers of csrc that it includes, however far."""
    found: set[Path] = set()
    waiting = [source]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        for name in _INCLUDE.findall(file.read_text()):
            candidates = [folder / name for folder in (file.parent, ROOT / "csrc")]
            waiting += [candidate.resolve() for candidate in candidates if candidate.exists()]
    return found
