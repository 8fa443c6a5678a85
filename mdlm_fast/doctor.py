"""`mdlm-fast doctor`: what this installation can use, and why it cannot use the rest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import warnings
from typing import Any


def report() -> dict[str, Any]:
    """Everything `mdlm-fast doctor` prints, as JSON-serialisable values."""
    import torch

    import mdlm_fast

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning about a missing library is one of the lines of this report
        from mdlm_fast import ops
    return {
        "mdlm_fast": {"version": mdlm_fast.__version__, "path": os.path.dirname(mdlm_fast.__file__)},
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: package_version(name) for name in ("torch", "transformers", "triton", "safetensors")},
        "backends": ops.backend_report(),
        "cpu": {
            "model": cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "instructions": instruction_set(),
        },
        "cuda": {
            "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "torch_built_for": torch.version.cuda,
            "nvcc": nvcc_version(),
        },
        "compiler": compiler_version(),
    }


def package_version(name: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def instruction_set() -> str | None:
    """What the compiled CPU kernels run with ("amx", "avx512", "avx2", "portable"), or None if there are none."""
    import torch

    namespace = torch.ops.mdlm_fast_cpp
    return str(namespace.cpu_isa()) if hasattr(namespace, "cpu_isa") else None


def _first_line(*command: str) -> str | None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    return lines[0] if result.returncode == 0 and lines else None


def nvcc_version() -> str | None:
    """Release of the CUDA compiler on PATH, or None."""
    if shutil.which("nvcc") is None:
        return None
    try:
        text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return next((line.split("release ")[1].split(",")[0] for line in text.splitlines() if "release " in line), None)


def compiler_version() -> str | None:
    """First line of the C++ compiler's --version, or None where there is none."""
    return _first_line(*os.environ.get("CXX", "c++").split(), "--version")


def lines(found: dict[str, Any]) -> list[str]:
    """The report as text, a fact a line."""
    packages = found["packages"]
    cpu, cuda = found["cpu"], found["cuda"]
    text = [
        f"mdlm-fast     {found['mdlm_fast']['version']} in {found['mdlm_fast']['path']}",
        f"python        {found['python']} ({found['executable']})",
        f"torch         {packages['torch']}",
        f"transformers  {packages['transformers'] or 'not installed: load_model and wrap need it'}",
        f"triton        {packages['triton'] or 'not installed'}",
        f"compiler      {found['compiler'] or 'none: C++ kernels cannot be built'}",
        f"nvcc          {cuda['nvcc'] or 'not on PATH'}",
        f"cpu           {cpu['model']}, {cpu['cores']} cores, torch uses {cpu['threads']} threads",
        f"instructions  {cpu['instructions'] or 'no compiled CPU kernels'}",
        f"gpu           {', '.join(cuda['devices']) or 'none visible to torch'}",
        "backends",
    ]
    for backend in found["backends"]:
        where = ", ".join(backend["devices"]) if backend["devices"] else "any device"
        state = f"{len(backend['ops'])} ops, {where}" if backend["available"] else f"not there: {backend['reason']}"
        chosen = " (chosen)" if backend["chosen"] else ""
        text.append(f"  {backend['name']:<11} {state}{chosen}")
    return text
