"""Definition of the torch.library ops: schema, dispatcher implementation, fake kernel, autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mdlm_fast.ops._registry import implementation
from mdlm_fast.ops._schemas import SCHEMAS

NAMESPACE = "mdlm_fast"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def define(op: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register an op of `SCHEMAS` and return its overload.

    Args:
        run: the dispatcher implementation. It checks values, calls `call`, and turns row codes into errors. Runs below
            autograd and below torch.compile, for every device.
        fake: shapes and dtypes of the outputs.
    """
    _library.define(op + SCHEMAS[op])
    _library.impl(op, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{op}", fake, lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), op).default


def autograd(op: str, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
    """Give an op a gradient."""
    torch.library.register_autograd(f"{NAMESPACE}::{op}", backward, setup_context=setup_context, lib=_library)


def call(op: str, like: Tensor, *arguments: Any) -> Any:
    """Run an op on the backend for `like`'s device and dtype, with autocast off: ops mean the same inside autocast."""
    device = like.device.type
    run = implementation(op, device, like.dtype)
    if torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return run(*arguments)
    return run(*arguments)
