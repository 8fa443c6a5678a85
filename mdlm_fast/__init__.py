"""mdlm-fast: fast decoding of masked diffusion language models.

Everything in `__all__` is imported on first use, so `import mdlm_fast` is cheap and `import mdlm_fast.ops` needs
torch alone: transformers is imported when a model is loaded or wrapped.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a checkout (bare or editable) the Triton kernels lie in ../kernels, which is not below this folder and, having no
# __init__.py, is not found by an editable install. Wheels carry them as mdlm_fast/kernels.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").exists() and not (Path(__file__).parent / "kernels").exists():
    __path__.append(str(_checkout))

_EXPORTS = {
    "load_model": "mdlm_fast.models",
    "wrap": "mdlm_fast.models",
    "MaskedDiffusionModel": "mdlm_fast.models",
    "generate": "mdlm_fast.decode",
    "GenerateOutput": "mdlm_fast.output",
    "DecodeConfig": "mdlm_fast.config",
    "EOSER": "mdlm_fast.config",
    "RCR": "mdlm_fast.config",
    "SMC": "mdlm_fast.config",
    "Trajectory": "mdlm_fast.trajectory",
    "use_backend": "mdlm_fast.ops",
}
_MODULES = ("analysis", "compat", "models", "ops", "rl", "rng", "schedules", "tasks")

__all__ = [
    "EOSER",
    "RCR",
    "SMC",
    "DecodeConfig",
    "GenerateOutput",
    "MaskedDiffusionModel",
    "Trajectory",
    "analysis",
    "compat",
    "generate",
    "load_model",
    "models",
    "ops",
    "rl",
    "rng",
    "schedules",
    "tasks",
    "use_backend",
    "wrap",
]

if TYPE_CHECKING:
    from mdlm_fast import analysis, compat, models, ops, rl, rng, schedules, tasks
    from mdlm_fast.config import EOSER, RCR, SMC, DecodeConfig
    from mdlm_fast.decode import generate
    from mdlm_fast.models import MaskedDiffusionModel, load_model, wrap
    from mdlm_fast.ops import use_backend
    from mdlm_fast.output import GenerateOutput
    from mdlm_fast.trajectory import Trajectory


def __getattr__(name: str) -> Any:
    """Import an exported name or submodule on first use (PEP 562)."""
    if name in _MODULES:
        return import_module(f"mdlm_fast.{name}")
    if name not in _EXPORTS:
        raise AttributeError(f"module 'mdlm_fast' has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
