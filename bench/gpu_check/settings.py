"""What one run of the check is told, in a form that goes to the processes that do the work."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "gpu_check"
LIBRARY = FOLDER / "libmdlm_fast_cuda.so"
EXTENSION_TORCH = (2, 13)  # from this torch on the package's own extension is built, else LIBRARY


@dataclass(frozen=True)
class Settings:
    """One worker's orders.

    Attributes:
        device: "cuda", or "cpu" in a dry run.
        backends: those to check; in a dry run the reference stands in for them.
        quick: fewer cases and sizes.
        dry: tiny sizes, no device.
        seconds: no item is begun after that long.
        options: of the stage, e.g. which ops.
        done: items that an earlier worker of the same stage finished or failed at.
    """

    device: str = "cuda"
    backends: tuple[str, ...] = ("cuda", "triton")
    quick: bool = False
    dry: bool = False
    seconds: float = 600.0
    options: dict[str, Any] = field(default_factory=dict)
    done: tuple[str, ...] = ()

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Settings:
        values = json.loads(text)
        return cls(**{**values, "backends": tuple(values["backends"]), "done": tuple(values["done"])})


def prepare_process() -> None:
    """Make the package, the test cases and the library built for an older torch usable in this process."""
    for folder in (ROOT / "tests", ROOT):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    import torch

    from mdlm_fast.ops import _library, register_backend

    if torch_version(torch.__version__) < EXTENSION_TORCH and LIBRARY.exists():
        try:
            torch.ops.load_library(str(LIBRARY))
        except (OSError, RuntimeError) as error:  # the other backends can still be checked
            print(f"{LIBRARY.name} does not load: {error}", file=sys.stderr)
        register_backend(_library.cuda_backend())


def torch_version(text: str) -> tuple[int, int]:
    """(major, minor) of e.g. "2.11.0+cu130"."""
    major, minor = text.split("+")[0].split(".")[:2]
    return int(major), int(minor)
