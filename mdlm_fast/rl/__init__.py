"""mdlm_fast.rl: training masked diffusion language models by reinforcement learning.

Everything in `__all__` is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_EXPORTS: dict[str, str] = {
    "CJGRPOConfig": "mdlm_fast.rl.methods.cj_grpo",
    "CJGRPOTrainer": "mdlm_fast.rl.methods.cj_grpo",
    "MDPOConfig": "mdlm_fast.rl.methods.mdpo",
    "MDPOTrainer": "mdlm_fast.rl.methods.mdpo",
    "OneStepGRPOConfig": "mdlm_fast.rl.methods.one_step",
    "OneStepGRPOTrainer": "mdlm_fast.rl.methods.one_step",
    "DiffuGRPOConfig": "mdlm_fast.rl.methods.diffu_grpo",
    "DiffuGRPOTrainer": "mdlm_fast.rl.methods.diffu_grpo",
    "CoupledGRPOConfig": "mdlm_fast.rl.methods.coupled",
    "CoupledGRPOTrainer": "mdlm_fast.rl.methods.coupled",
    "TraceConfig": "mdlm_fast.rl.methods.trace",
    "TraceTrainer": "mdlm_fast.rl.methods.trace",
    "DMPOConfig": "mdlm_fast.rl.methods.dmpo",
    "DMPOTrainer": "mdlm_fast.rl.methods.dmpo",
    "MaskedDiffusionTrainer": "mdlm_fast.rl.trainer",
    "RLConfig": "mdlm_fast.rl.config",
}
_MODULES = ("objectives", "presets")

__all__ = [
    "CJGRPOConfig",
    "CJGRPOTrainer",
    "CoupledGRPOConfig",
    "CoupledGRPOTrainer",
    "DMPOConfig",
    "DMPOTrainer",
    "DiffuGRPOConfig",
    "DiffuGRPOTrainer",
    "MDPOConfig",
    "MDPOTrainer",
    "MaskedDiffusionTrainer",
    "OneStepGRPOConfig",
    "OneStepGRPOTrainer",
    "RLConfig",
    "TraceConfig",
    "TraceTrainer",
    "objectives",
    "presets",
]

if TYPE_CHECKING:
    from mdlm_fast.rl import objectives, presets
    from mdlm_fast.rl.config import RLConfig
    from mdlm_fast.rl.methods.cj_grpo import CJGRPOConfig, CJGRPOTrainer
    from mdlm_fast.rl.methods.coupled import CoupledGRPOConfig, CoupledGRPOTrainer
    from mdlm_fast.rl.methods.diffu_grpo import DiffuGRPOConfig, DiffuGRPOTrainer
    from mdlm_fast.rl.methods.dmpo import DMPOConfig, DMPOTrainer
    from mdlm_fast.rl.methods.mdpo import MDPOConfig, MDPOTrainer
    from mdlm_fast.rl.methods.one_step import OneStepGRPOConfig, OneStepGRPOTrainer
    from mdlm_fast.rl.methods.trace import TraceConfig, TraceTrainer
    from mdlm_fast.rl.trainer import MaskedDiffusionTrainer


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
