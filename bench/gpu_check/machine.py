"""Stage: what this machine is, and its two ceilings, copy bandwidth and bf16 matrix rate."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from bench.gpu_check.settings import ROOT, Settings
from bench.gpu_check.timing import Clock, median
from bench.gpu_check.worker import Item


def items(settings: Settings) -> Iterator[Item]:
    yield Item("versions", lambda: versions(settings))
    yield Item("copy bandwidth", lambda: copy_bandwidth(settings))
    yield Item("matrix rate", lambda: matrix_rate(settings))


def versions(settings: Settings) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": __import__("triton").__version__ if find_spec("triton") else "absent",
        "nvcc": _search(["nvcc", "--version"], r"release ([\d.]+)"),
        "driver": _search(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], r"([\d.]+)"),
        "commit": _search(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], r"(\w+)"),
        "system": platform.release(),
    }
    if settings.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_mib": round(getattr(properties, "L2_cache_size", 0) / 2**20, 1),
            "cuda": torch.version.cuda,
        }
    else:
        found["device"] = f"CPU {platform.machine()}"
    return found


def _search(command: list[str], pattern: str) -> str:
    """The first group of a pattern in a command's output, or "unknown"."""
    if shutil.which(command[0]) is None:
        return "unknown"
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    match = re.search(pattern, output)
    return match.group(1) if match else "unknown"


def copy_bandwidth(settings: Settings) -> dict[str, Any]:
    """Device-to-device copies, bytes read plus bytes written."""
    import torch

    size = 2**20 if settings.dry else 2**31
    source = torch.empty(size, dtype=torch.uint8, device=settings.device).random_()
    target = torch.empty_like(source)
    seconds = median(Clock(settings).rounds(lambda i: target.copy_(source), 20))
    return {"seconds": seconds, "gb_per_s": 2 * size / seconds / 1e9}


def matrix_rate(settings: Settings) -> dict[str, Any]:
    """A large bf16 product of random numbers: zeros run faster."""
    import torch

    size = 64 if settings.dry else 8192
    a, b = (torch.randn(size, size, device=settings.device).bfloat16() for _ in range(2))
    seconds = median(Clock(settings).rounds(lambda i: a @ b, 20))
    return {"seconds": seconds, "tflop_per_s": 2 * size**3 / seconds / 1e12}
