"""Stage: the CUDA kernels, compiled for the device that is there.

With torch 2.13 or later it is the package's own extension. An older torch has no stable ABI for all of it, so the CUDA
part alone becomes a library, object by object; a source that does not compile costs its own op and no other.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.gpu_check.settings import EXTENSION_TORCH, FOLDER, LIBRARY, ROOT, torch_version

CSRC = ROOT / "csrc"


def build(seconds: float) -> dict[str, Any]:
    """Compile; what was done, how long it took and what failed.

    Returns:
        kind ("extension" or "library"), arch, seconds, errors: file -> end of the compiler's output.
    """
    import torch

    start = time.monotonic()
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    arch = f"{major}{minor}{'a' if major == 9 else ''}"
    version = torch_version(torch.__version__)
    run = _extension if version >= EXTENSION_TORCH else _library
    errors = run(arch, version, start + seconds)
    return {
        "kind": "extension" if version >= EXTENSION_TORCH else "library",
        "arch": arch,
        "seconds": time.monotonic() - start,
        "errors": errors,
    }


def _extension(arch: str, version: tuple[int, int], deadline: float) -> dict[str, str]:
    environment = {**os.environ, "MDLM_FAST_CUDA_ARCHS": arch, "MDLM_FAST_BUILD": "require"}
    log = _run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], deadline, environment)
    return {} if log is None else {"setup.py": log}


def _library(arch: str, version: tuple[int, int], deadline: float) -> dict[str, str]:
    import torch
    from torch.utils import cpp_extension

    toolkit = _toolkit(cpp_extension.CUDA_HOME)
    if toolkit is None:
        return {"nvcc": "not found: set CUDA_HOME"}
    target = f"-DTORCH_TARGET_VERSION=0x{version[0]:02x}{version[1]:02x}000000000000"
    includes = ["-I", str(CSRC), "-I", str(toolkit / "include")]
    torch_includes = [part for folder in cpp_extension.include_paths() for part in ("-I", folder)]
    compile_cuda = [str(toolkit / "bin" / "nvcc"), "-c", "-O3", "-std=c++20", "-Xcompiler", "-fPIC", *includes]
    compile_cuda += [f"-gencode=arch=compute_{arch},code=sm_{arch}"]
    compile_cpp = [os.environ.get("CXX", "c++"), "-c", "-O2", "-std=c++20", "-fPIC", "-DUSE_CUDA", target]
    compile_cpp += [*includes, *torch_includes]

    jobs = [(source, compile_cuda) for source in sorted((CSRC / "cuda").glob("*.cu"))]
    jobs += [(source, compile_cpp) for source in sorted((CSRC / "bindings" / "cuda").glob("*.cpp"))]
    headers = _digest(sorted(CSRC.rglob("*.*h")))
    (FOLDER / "objects").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        built = list(pool.map(lambda job: _compile(job[0], job[1], headers, torch.__version__, deadline), jobs))
    errors = {source.name: log for (source, _), (_, log) in zip(jobs, built, strict=True) if log is not None}
    # A kernel without its binding is unused; a binding without its kernel would keep the library from loading.
    absent = [f"cuda/{Path(name).stem}.h" for name in errors]
    objects = [
        str(path)
        for (source, _), (path, log) in zip(jobs, built, strict=True)
        if log is None and not (source.suffix == ".cpp" and any(header in source.read_text() for header in absent))
    ]
    LIBRARY.unlink(missing_ok=True)
    if not objects:
        return errors or {"csrc/cuda": "no sources"}
    torch_lib = Path(torch.__file__).parent / "lib"
    link = [os.environ.get("CXX", "c++"), "-shared", "-o", str(LIBRARY), *objects]
    link += ["-L", str(torch_lib), f"-Wl,-rpath,{torch_lib}", "-ltorch", "-ltorch_cpu", "-ltorch_cuda", "-lc10"]
    link += ["-L", str(toolkit / "lib64"), "-L", str(toolkit / "lib"), "-lcudart_static", "-lrt", "-ldl", "-lpthread"]
    log = _run(link, deadline)
    return errors if log is None else {**errors, "link": log}


def _compile(source: Path, command: list[str], headers: str, version: str, deadline: float) -> tuple[Path, str | None]:
    """(the object, None or what went wrong). An object of the same inputs is used again."""
    key = hashlib.sha256(f"{headers} {version} {command} {_digest([source])}".encode()).hexdigest()[:16]
    path = FOLDER / "objects" / f"{source.stem}{source.suffix}.{key}.o"
    if path.exists():
        return path, None
    unfinished = path.with_suffix(".part")
    log = _run([*command, str(source), "-o", str(unfinished)], deadline)
    if log is None:
        unfinished.rename(path)
    return path, log


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def _toolkit(home: str | None) -> Path | None:
    """The folder with bin/nvcc."""
    candidates = [os.environ.get("CUDA_HOME"), home, "/usr/local/cuda"]
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        candidates.append(str(Path(nvcc).resolve().parents[1]))
    return next((Path(c) for c in candidates if c and (Path(c) / "bin" / "nvcc").exists()), None)


def _run(command: list[str], deadline: float, environment: dict[str, str] | None = None) -> str | None:
    """None, or the end of the output of a command that failed."""
    left = deadline - time.monotonic()
    if left <= 0:
        return "no time left"
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=left)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)[-500:]
    output = done.stderr + done.stdout
    errors = [line for line in output.splitlines() if "error" in line.lower()]
    return None if done.returncode == 0 else "\n".join(errors[:5] or output.splitlines()[-5:])[:1500]
