"""mdlm_fast.rl: training masked diffusion language models by reinforcement learning.

Everything in `__all__` is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_EXPORTS: dict[str, str] = {}
_MODULES = ("objectives",)

__all__ = ["objectives"]

if TYPE_CHECKING:
    from mdlm_fast.rl import objectives


def __getattr__(name: str) -> Any:
    """Import an exported name or submodule on first use (PEP 562)."""
    if name in _MODULES:
        return import_module(f"mdlm_fast.rl.{name}")
    if name not in _EXPORTS:
        raise AttributeError(f"module 'mdlm_fast.rl' has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
