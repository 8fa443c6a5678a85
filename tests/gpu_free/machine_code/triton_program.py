"""Compiles the Triton kernels for an architecture without a GPU; run by triton_kernels.py in a process of its own.

Arguments: architecture (e.g. 90), folder, and names of launches (all of them if none). Every kernel that the host code
launches is compiled as for a device of that architecture, from the arguments that the host code gives it, and is not
started. Cubins go into the folder; what a launch of each takes is printed as JSON.
"""

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import triton
from gpu_free.machine_code.triton_launches import LAUNCHES, launch
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction


def compile_launches(arch: int, folder: Path, names: list[str]) -> list[dict[str, Any]]:
    """One record per kernel that differs from those before it."""
    device = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda _device: 0,
        get_current_target=lambda: GPUTarget("cuda", arch, 32),
    )
    triton.runtime.driver.set_active(device)
    launched: list[Any] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        launched.append(run(self, *args, grid=grid, warmup=True, **kwargs))
        return launched[-1]

    JITFunction.run = compile_only
    records, seen = [], set()
    for name in names or LAUNCHES:
        launch(name)
        for kernel in launched:
            cubin = kernel.asm["cubin"]
            digest = hashlib.sha256(cubin).hexdigest()
            if digest in seen:
                continue
            seen.add(digest)
            (folder / f"{digest}.cubin").write_bytes(cubin)
            records.append(
                {
                    "launch": name,
                    "kernel": kernel.metadata.name,
                    "cubin": f"{digest}.cubin",
                    "threads": kernel.metadata.num_warps * 32,
                    "dynamic_shared": kernel.metadata.shared,
                }
            )
        launched.clear()
    return records


print(json.dumps(compile_launches(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])))
