"""What the numbers of a run depend on: device, threads, versions, commit, date."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from shutil import which
from typing import Any

import torch

from mdlm_fast import ops
from mdlm_fast.doctor import cpu_model, instruction_set, package_version

PACKAGES = ("torch", "triton", "transformers", "accelerate", "peft", "numpy")


def environment(device: str) -> dict[str, Any]:
    """Of this process.

    Returns:
        machine: what results of the same machine share: the GPU's name, or the CPU's with what tells processors of one
            name apart (family, model, stepping), the instructions of the kernels and the threads; and the backend of
            the ops where it is not the one the device would get.
        device ("cpu" or "cuda"), cpu, cores, threads, cache_bytes (last level), memory_bytes, instructions (the widest
            that the CPU kernels use; None without them), backend (of the ops), python, system, packages (name ->
            version), commit, date (UTC), load (of the machine when the run began, mean of a minute, in processes).
    """
    cuda = torch.device(device).type == "cuda"
    best = ops.available_backends("score_rows", device)[0]
    backend = next((found["name"] for found in ops.backend_report() if found["chosen"]), best)
    machine = torch.cuda.get_device_name(device) if cuda else cpu_machine()
    return {
        "machine": machine if backend == best else f"{machine}, backend {backend}",
        "device": torch.device(device).type,
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cache_bytes": cache_bytes(),
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory if cuda else memory_bytes(),
        "instructions": instruction_set(),
        "backend": backend,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "packages": {name: found for name in PACKAGES if (found := package_version(name))},
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "load": round(os.getloadavg()[0], 2),
    }


def cpu_machine() -> str:
    """The processor, what it runs with and on how many threads; virtual machines often give a name that many
    processors share, so its numbers stand beside it."""
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    numbers = [re.search(rf"^{name}\s*: (\d+)$", text, re.MULTILINE) for name in ("cpu family", "model", "stepping")]
    signature = "-".join(number.group(1) for number in numbers if number)
    threads = torch.get_num_threads()
    parts = [cpu_model() + f" {signature}" * bool(signature), instruction_set() or "no kernels of ours"]
    return ", ".join([*parts, f"{threads} thread{'s' * (threads != 1)}"])


def cache_bytes() -> int:
    """Size of the last-level cache; 32 MiB where the system does not tell."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 2**10, "M": 2**20}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1] in units), default=32 * 2**20)


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def commit() -> str:
    """Of the checkout this file lies in, with "-dirty" if it was changed; "release VERSION" outside a checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists() or which("git") is None:
        return f"release {package_version('mdlm-fast') or 'unknown'}"
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=here, capture_output=True, text=True).stdout.strip() or "unknown"
