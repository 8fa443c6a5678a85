"""What the numbers of a run depend on: device, threads, versions, commit, date."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import which
from typing import Any

import torch

from mdlm_fast import ops

PACKAGES = ("torch", "triton", "transformers", "accelerate", "peft", "numpy")


def environment(device: str) -> dict[str, Any]:
    """Of this process.

    Returns:
        machine: what results of the same machine share ("NVIDIA H200", or the CPU's model and threads);
        device ("cpu" or "cuda"), cpu, cores, threads, cache_bytes (last level), memory_bytes, instructions (the widest
        vector instructions torch uses), backend (of the ops), python, system, packages (name -> version), commit,
        date (UTC), load (of the machine when the run began, mean of a minute, in processes).
    """
    cpu, threads = cpu_model(), torch.get_num_threads()
    cuda = torch.device(device).type == "cuda"
    return {
        "machine": torch.cuda.get_device_name(device) if cuda else f"{cpu}, {threads} thread{'s' * (threads != 1)}",
        "device": torch.device(device).type,
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "cache_bytes": cache_bytes(),
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory if cuda else memory_bytes(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "backend": ops.available_backends("score_rows", device)[0],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "packages": {name: found for name in PACKAGES if (found := installed(name))},
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "load": round(os.getloadavg()[0], 2),
    }


def cpu_model() -> str:
    """The processor's name, as the system gives it."""
    information = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", information.read_text()) if information.exists() else None
    return " ".join(found.group(1).split()) if found else platform.processor() or platform.machine()


def cache_bytes() -> int:
    """Size of the last-level cache; 32 MiB where the system does not tell."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 2**10, "M": 2**20}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1] in units), default=32 * 2**20)


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def installed(package: str) -> str | None:
    """Its version, None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str:
    """Of the checkout this file lies in, with "-dirty" if it was changed; "release VERSION" outside a checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists() or which("git") is None:
        return f"release {installed('mdlm-fast') or 'unknown'}"
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=here, capture_output=True, text=True).stdout.strip() or "unknown"
