"""The Triton kernels of kernels/ as cubins, for the launches of triton_launches.py. Needs Triton, no GPU."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib.metadata import version

from gpu_free.machine_code.cuda_kernels import BUILD, ROOT, Compiled

PROGRAM = "gpu_free.machine_code.triton_program"


def compile_all(arch: str) -> list[Compiled]:
    """Every kernel that the launches start, for one architecture ("80", "90a", "100", "120"), by name.

    Triton's own cache, in build/machine_code, keeps what it has compiled.

    Raises:
        RuntimeError: a kernel does not compile, or a host function refuses the arguments of a launch.
    """
    folder = BUILD / "triton"
    folder.mkdir(parents=True, exist_ok=True)
    search = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    # A later Triton changes the default of TRITON_DEFAULT_FP_FUSION and warns until it is set.
    settings = {"TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1", "TRITON_CACHE_DIR": str(folder / "cache")}
    environment = {**os.environ, **settings, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", PROGRAM, arch.rstrip("a"), str(folder)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"compiling the Triton kernels for sm_{arch}:\n{result.stdout}{result.stderr}")
    kernels = [
        Compiled(
            name=f"{record['kernel']}: {record['launch']}",
            symbol=record["kernel"],
            cubin=folder / record["cubin"],
            threads=record["threads"],
            dynamic_shared=record["dynamic_shared"],
        )
        for record in json.loads(result.stdout)
    ]
    return sorted(kernels, key=lambda kernel: kernel.name)


def launched_functions() -> set[str]:
    """Names of the kernels that the host functions of kernels/*.py start: `name[grid](...)`."""
    calls = [
        node.func.value
        for path in sorted((ROOT / "kernels").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
    ]
    return {kernel.id for kernel in calls if isinstance(kernel, ast.Name)}


def triton_version() -> str:
    return version("triton")
