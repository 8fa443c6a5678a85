"""Builds `mdlm_fast._C`: the CPU kernels, and the CUDA kernels when nvcc is present, on torch's stable ABI.

Everything else about the package is in pyproject.toml. Environment variables read here:

MDLM_FAST_BUILD       auto (default): build the extension if torch and a working C++ compiler are present, else install
                      pure Python and say so; require: fail instead; skip: pure Python.
MDLM_FAST_CUDA_ARCHS  architectures for nvcc, e.g. "80;90a;100". Default: 80;90a;100;120.
MDLM_FAST_SANITIZE    e.g. "address,undefined": compile and link with -fsanitize=... (see `make sanitize`).
MAX_JOBS              parallel compiler processes. Default: from the cores and the free memory.
CC, CXX, CUDA_HOME    as usual.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

ROOT = Path(__file__).parent.resolve()
STABLE_ABI_TARGET = "0x020d000000000000"  # torch 2.13: the first whose stable ABI has the streams the CUDA kernels need
DEFAULT_CUDA_ARCHS = "80;90a;100;120"
GIGABYTES_PER_JOB = 2.0  # what the largest translation unit takes to compile


def sources(folder: str, suffix: str) -> list[str]:
    """Files of one folder of csrc/, as paths relative to the root (setuptools refuses absolute ones), sorted."""
    return [str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc" / folder).glob(f"*{suffix}"))]


def why_no_compiler() -> str | None:
    """None if a C++20 shared library can be compiled here, else the reason it cannot."""
    compilers = [os.environ.get("CXX", "c++")] + ([os.environ["CC"]] if "CC" in os.environ else [])
    for compiler in compilers:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "probe.cpp").write_text('extern "C" constinit const int probe = 0;\n')
            command = [*compiler.split(), "-std=c++20", "-shared", "-fPIC", "-x", "c++", "probe.cpp", "-o", "probe.so"]
            try:
                result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            except OSError as error:
                return f"the C++ compiler {compiler!r} cannot be run ({error.strerror})"
            if result.returncode != 0:
                return f"the C++ compiler {compiler!r} cannot build a C++20 shared library"
    return None


def cuda_home() -> Path | None:
    """The CUDA toolkit's folder: CUDA_HOME, else where nvcc on PATH says it lives."""
    if os.environ.get("CUDA_HOME"):
        return Path(os.environ["CUDA_HOME"])
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    # nvcc on PATH may be a wrapper script elsewhere, so ask it: --dryrun prints `#$ TOP=<toolkit>/bin/..`.
    result = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True)
    for line in result.stderr.splitlines():
        if line.startswith("#$ TOP="):
            return Path(line.removeprefix("#$ TOP=").strip()).resolve()
    return None


def set_max_jobs() -> None:
    """As many compiler processes as there are cores, fewer where memory is short; ninja alone looks only at cores."""
    if "MAX_JOBS" in os.environ:
        return
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20
        jobs = min(jobs, int(available / GIGABYTES_PER_JOB))
    except (OSError, StopIteration):
        pass
    os.environ["MAX_JOBS"] = str(max(jobs, 1))


def extension() -> tuple[list[Any], dict[str, Any]]:
    """The extension modules and the build commands: (ext_modules, cmdclass). Both empty: a pure Python install."""
    mode = os.environ.get("MDLM_FAST_BUILD", "auto")
    if mode not in ("auto", "require", "skip"):
        sys.exit(f"MDLM_FAST_BUILD={mode!r} is not one of auto, require, skip")
    cpu_sources = sources("bindings", ".cpp") + sources("cpu", ".cpp")
    if mode == "skip" or not cpu_sources:
        return [], {}
    try:
        from torch.utils import cpp_extension
    except ImportError:
        reason: str | None = "torch is not there while building (install torch, then pip install --no-build-isolation)"
    else:
        reason = why_no_compiler()
    if reason is not None:
        if mode == "require":
            sys.exit(f"mdlm-fast: MDLM_FAST_BUILD=require, but {reason}")
        announce(f"mdlm-fast: installing without the compiled kernels, on the PyTorch reference backend: {reason}")
        return [], {}

    set_max_jobs()
    defines = [f"-DTORCH_TARGET_VERSION={STABLE_ABI_TARGET}"]
    # No contraction: the AVX-512, AVX2 and portable kernels agree bit for bit because every fused multiply-add in them
    # is written out.
    cxx_flags = ["-O3", "-std=c++20", "-Wall", "-fvisibility=hidden", "-ffp-contract=off", "-g0", *defines]
    link_flags: list[str] = []
    if os.environ.get("MDLM_FAST_SANITIZE"):
        sanitize = f"-fsanitize={os.environ['MDLM_FAST_SANITIZE']}"
        cxx_flags += [sanitize, "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined", "-g", "-O1"]
        link_flags += [sanitize]
    compile_flags = {"cxx": cxx_flags}
    all_sources, libraries, library_dirs = list(cpu_sources), [], []

    cuda_sources = sources("cuda", ".cu")
    toolkit = cuda_home() if cuda_sources else None
    if toolkit is not None:
        # A CPU build of torch sets CUDA_HOME to None whatever the environment says, so set it here. CppExtension and
        # the static runtime are enough: nothing of libtorch_cuda is linked, and the library loads under any torch.
        cpp_extension.CUDA_HOME = str(toolkit)
        archs = os.environ.get("MDLM_FAST_CUDA_ARCHS", DEFAULT_CUDA_ARCHS).replace(",", ";").split(";")
        os.environ["TORCH_CUDA_ARCH_LIST"] = ""
        compile_flags["nvcc"] = ["-O3", "-std=c++20", *defines]
        compile_flags["nvcc"] += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs if arch]
        all_sources += cuda_sources + sources("bindings/cuda", ".cpp")
        libraries, library_dirs = ["cudart_static", "rt", "dl"], [str(toolkit / "lib64")]

    module = cpp_extension.CppExtension(
        "mdlm_fast._C",
        all_sources,
        include_dirs=[str(ROOT / "csrc")] + ([str(toolkit / "include")] if toolkit else []),
        extra_compile_args=compile_flags,
        extra_link_args=link_flags,
        libraries=libraries,
        library_dirs=library_dirs,
        # Else a changed header leaves the old library in place: setuptools compares the library with `sources` alone.
        depends=["setup.py", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").rglob("*.*h")))],
        py_limited_api=True,
    )
    return [module], {"build_ext": cpp_extension.BuildExtension}


def announce(message: str) -> None:
    """Say it once: a build backend runs this file several times (metadata, then the wheel) in one install."""
    if not {"egg_info", "dist_info"} & set(sys.argv):
        print(message, file=sys.stderr)


modules, commands = extension()
# Programs that need a checkout are not installed.
benchmarks = ["", *(f".{name}" for name in find_packages("bench", exclude=["gpu_check*", "learning*"]))]
setup(
    # kernels/ is installed as mdlm_fast.kernels: a top-level `kernels` would shadow the PyPI package of that name,
    # which transformers imports. It has no __init__.py for the same reason, so it is named here, not found.
    packages=[
        *find_packages(include=["mdlm_fast", "mdlm_fast.*"]),
        "mdlm_fast.kernels",
        *(f"mdlm_fast.bench{name}" for name in benchmarks),
    ],
    package_dir={"mdlm_fast.kernels": "kernels", "mdlm_fast.bench": "bench"},
    package_data={"": ["py.typed", "data/**/*", "*.j2"]},
    ext_modules=modules,
    cmdclass=commands,
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if modules else {},
)
