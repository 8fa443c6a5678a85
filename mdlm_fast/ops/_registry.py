"""Which backend runs an op: one lookup per call, one way to override it, one report of what is there and why."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch

Implementation = Callable[..., Any]

ENVIRONMENT_VARIABLE = "MDLM_FAST_BACKEND"


@dataclass(frozen=True)
class Backend:
    """One set of implementations.

    Attributes:
        name: what `use_backend` calls it.
        devices: device types it runs on; None means any.
        dtypes: floating dtypes of logits, hidden states and weights it reads; None means any.
        ops: op name -> implementation taking the arguments of the schema in order.
        missing: why it is not there, or None when it is.
    """

    name: str
    devices: frozenset[str] | None = None
    dtypes: frozenset[torch.dtype] | None = None
    ops: Mapping[str, Implementation] = field(default_factory=dict)
    missing: str | None = None

    def supports(self, op: str, device: str, dtype: torch.dtype) -> bool:
        return (
            op in self.ops
            and (self.devices is None or device in self.devices)
            and (self.dtypes is None or not dtype.is_floating_point or dtype in self.dtypes)
        )


_backends: dict[str, Backend] = {}  # in order of preference, last registered last
_chosen: str | None = None
_cache: dict[tuple[str, str, torch.dtype], Implementation] = {}


def register_backend(backend: Backend) -> None:
    """Add a backend. Earlier ones are preferred, so the reference comes last."""
    _backends[backend.name] = backend
    _cache.clear()


def implementation(op: str, device: str, dtype: torch.dtype) -> Implementation:
    """The implementation of `op` for tensors of this device type and dtype.

    Raises:
        RuntimeError: the backend that was asked for does not have the op for this device and dtype.
    """
    found = _cache.get((op, device, dtype))
    if found is None:
        found = _cache[op, device, dtype] = _find(op, device, dtype)
    return found


def _find(op: str, device: str, dtype: torch.dtype) -> Implementation:
    if _chosen is not None:
        backend = _backends[_chosen]
        if not backend.supports(op, device, dtype):
            raise RuntimeError(
                f"backend {backend.name!r} has no {op} for {dtype} tensors on {device}; "
                f"choose another with mdlm_fast.use_backend(...) or unset {ENVIRONMENT_VARIABLE}"
            )
        return backend.ops[op]
    for backend in _backends.values():
        if backend.missing is None and backend.supports(op, device, dtype):
            return backend.ops[op]
    raise RuntimeError(f"no backend has {op} for {dtype} tensors on {device}")


class _Choice:
    """What `use_backend` returns: leaving the `with` block restores the choice that stood before the call."""

    def __init__(self, before: str | None) -> None:
        self._before = before

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _choose(self._before)


def _choose(name: str | None) -> None:
    global _chosen
    _chosen = name
    _cache.clear()


def use_backend(name: str | None) -> _Choice:
    """Run every op on one backend, for the whole process.

    A call takes effect at once. Used as a context manager it is undone at the end of the block::

        with mdlm_fast.use_backend("reference"):
            ...

    Args:
        name: "reference", "cpp", ..., or None for the automatic choice by device.

    Raises:
        ValueError: there is no backend of that name.
        RuntimeError: the backend is known but not there; the message says why.
    """
    if name is not None:
        backend = _backends.get(name)
        if backend is None:
            raise ValueError(f"backend name={name!r} is unknown: choose one of {', '.join(_backends)}")
        if backend.missing is not None:
            raise RuntimeError(f"backend {name!r} is not there: {backend.missing}")
    before = _chosen
    _choose(name)
    return _Choice(before)


def choose_from_environment() -> None:
    """Apply MDLM_FAST_BACKEND, when set. Called once, after all backends are registered."""
    name = os.environ.get(ENVIRONMENT_VARIABLE)
    if name:
        try:
            use_backend(name)
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"{ENVIRONMENT_VARIABLE}={name}: {error}") from None


def current_backend() -> str | None:
    """The backend asked for with `use_backend` or the environment; None means the automatic choice."""
    return _chosen


def available_backends(op: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[str]:
    """Names of the backends that can run `op` on tensors of this device type and dtype, preferred first."""
    return [
        backend.name
        for backend in _backends.values()
        if backend.missing is None and backend.supports(op, device, dtype)
    ]


def backend_report() -> list[dict[str, Any]]:
    """What is there and why the rest is not, for `mdlm-fast doctor`.

    Returns:
        One dict per backend, preferred first: name, available (bool), reason (str or None), devices (list of str, or
        None for any), ops (sorted names), chosen (bool: asked for by `use_backend` or the environment).
    """
    return [
        {
            "name": backend.name,
            "available": backend.missing is None,
            "reason": backend.missing,
            "devices": None if backend.devices is None else sorted(backend.devices),
            "ops": sorted(backend.ops),
            "chosen": backend.name == _chosen,
        }
        for backend in _backends.values()
    ]
