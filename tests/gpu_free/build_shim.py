"""Compiles the CUDA kernels and their bindings with g++ against the host shim: build/shim/libmdlm_fast_shim.so.

    python tests/gpu_free/build_shim.py [--sanitize address,undefined | --races] [name ...]

Names restrict the library to some ops' files (csrc/cuda/<name>.cu, csrc/bindings/cuda/<name>.cpp). What has not
changed, headers included, is not compiled again. The path of the library is printed.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
SHIM = Path(__file__).resolve().parent / "shim"
BUILD = ROOT / "build"
JOBS = 2

# No contraction: which products and sums nvcc fuses is not g++'s choice. Hidden and not unique: a static __shared__
# variable of a template belongs to this library alone, even where another one has the same template.
FLAGS = ["-std=c++20", "-Wall", "-Wno-unknown-pragmas", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique"]
FLAGS += ["-ffp-contract=off", "-march=native", "-DMDLM_FAST_SHIM", f"-I{SHIM}", f"-I{ROOT / 'csrc'}"]


class CompileError(RuntimeError):
    pass


def build_ops(names: Iterable[str] = (), sanitize: str = "", races: bool = False) -> Path:
    """The library with every op that has CUDA kernels, or with the named ones; registers torch.ops.mdlm_fast_shim.

    Raises:
        CompileError: with what the compiler said.
    """
    names = sorted(names)
    kernels = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    bindings = sorted((ROOT / "csrc/bindings/cuda").glob("*.cpp"))
    chosen = [path for path in kernels + bindings if not names or path.stem in names]
    if not chosen:
        raise CompileError(f"csrc/cuda has no kernels{' named ' + ', '.join(names) if names else ''}")
    folder = BUILD / "-".join(["shim", *(["sanitize"] * bool(sanitize)), *(["races"] * races), *names])
    return build(folder / "libmdlm_fast_shim.so", chosen, sanitize=sanitize, races=races, with_torch=True)


def build(
    library: Path, sources: Sequence[Path], *, sanitize: str = "", races: bool = False, with_torch: bool = False
) -> Path:
    """Compile `sources` and the shim itself into `library`, as far as something changed. Safe in several processes.

    Args:
        library: where the shared library goes; object files go beside it.
        sources: .cu or .cpp files.
        sanitize: as for g++'s -fsanitize, or empty.
        races: whether kernels announce their loads and stores to the shim, which then reports races (shim/race.h).
        with_torch: whether the sources use torch's stable ABI.
    """
    library.parent.mkdir(parents=True, exist_ok=True)
    with open(library.parent / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        flags, link_flags = [*FLAGS, "-O1"], []
        if sanitize:
            flags = [*FLAGS, "-O1", "-g", f"-fsanitize={sanitize}", "-fno-sanitize-recover=undefined"]
            flags += ["-fno-omit-frame-pointer"]
            link_flags += [f"-fsanitize={sanitize}"]
        if with_torch:
            target = re.search(r'^STABLE_ABI_TARGET = "(\w+)"', (ROOT / "setup.py").read_text(), re.MULTILINE)
            assert target is not None
            flags += [f"-DTORCH_TARGET_VERSION={target[1]}", *(f"-isystem{p}" for p in cpp_extension.include_paths())]
            libraries = Path(torch.__file__).parent / "lib"
            link_flags += [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch_cpu", "-lc10"]

        def compiled(source: Path) -> Path:
            announce = ["-fsanitize=thread", "-g"] if races and source.suffix == ".cu" else []
            return _compile([*compiler, *flags, *announce], source, library.parent)

        with ThreadPoolExecutor(JOBS) as pool:
            objects = list(pool.map(compiled, [*sources, *sorted(SHIM.glob("*.cpp"))]))
        command = [*compiler, "-shared", "-Wl,--no-undefined", "-o", str(library), *map(str, objects), *link_flags]
        _run_if_older(library, objects, command)
    return library


def _compile(command: list[str], source: Path, folder: Path) -> Path:
    """The object file of `source`, compiled again if it, a header it read last time, or the command has changed."""
    place = "_".join(source.with_suffix("").parts[-3:])
    output, dependencies = folder / f"{place}.o", folder / f"{place}.d"
    inputs = [source]
    if dependencies.exists():
        names = dependencies.read_text().replace("\\\n", " ").split(":", 1)[1].split()
        inputs += [Path(name) for name in names if not name.startswith("/usr/")]
    command = [*command, "-MMD", "-MF", str(dependencies), "-x", "c++", "-c", str(source), "-o", str(output)]
    _run_if_older(output, inputs, command)
    return output


def _run_if_older(output: Path, inputs: Sequence[Path], command: list[str]) -> None:
    text, record = shlex.join(command), output.with_suffix(output.suffix + ".command")
    if output.exists() and record.exists() and record.read_text() == text:
        made = output.stat().st_mtime_ns
        if all(path.exists() and path.stat().st_mtime_ns < made for path in inputs):
            return
    record.unlink(missing_ok=True)
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        output.unlink(missing_ok=True)
        raise CompileError(f"{text}\n{result.stderr}")
    record.write_text(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sanitize", default="", help="g++'s sanitizers, separated by commas")
    parser.add_argument("--races", action="store_true", help="report accesses that no barrier orders")
    parser.add_argument("names", nargs="*", help="ops to build; all by default")
    arguments = parser.parse_args()
    print(build_ops(arguments.names, arguments.sanitize, arguments.races))
