"""What a comparison is: a case, the backend and device it runs on, and the errors it measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from oracles import within_twice_torch
from torch import Tensor


@dataclass(frozen=True)
class Measurement:
    """One error and how large it may be."""

    what: str
    error: float
    allowed: float = 0.0

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # NaN does not pass

    @property
    def ratio(self) -> float:
        if self.error == 0.0:
            return 0.0
        return self.error / self.allowed if self.allowed > 0.0 and self.error == self.error else float("inf")


@dataclass(frozen=True)
class Target:
    """The backend that is checked and the device its tensors are on."""

    backend: str
    device: str

    @property
    def interpreted(self) -> bool:
        """Whether kernels run an instruction at a time, so that few rows must do."""
        return self.device == "cpu" and self.backend in ("triton", "shim")

    def put(self, value: Any) -> Any:
        """A copy on the device: of a tensor, of the values of a dict, else the value itself."""
        if isinstance(value, Tensor):
            return value.to(self.device, copy=True)
        if isinstance(value, dict):
            return {name: self.put(item) for name, item in value.items()}
        return value


Check = Callable[[Target], Iterable[Measurement]]


@dataclass(frozen=True)
class Case:
    """A comparison that is built once and run on every target.

    Attributes:
        op: what the result is reported under.
        name: what is special about its input.
        dtype: of the floating inputs.
        needs: ops that a backend must have.
        build: makes input and expected output, on the CPU, and returns the check.
        reduced: part of the short list, which also an interpreter gets through.
    """

    op: str
    name: str
    dtype: torch.dtype
    needs: tuple[str, ...]
    build: Callable[[], Check]
    reduced: bool = False

    def __str__(self) -> str:
        return f"{self.op}: {self.name}, {short(self.dtype)}"


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def differing(what: str, ours: Tensor, expected: Tensor, allowed: int = 0) -> Measurement:
    """How many elements are not equal bit for bit (NaN equals NaN)."""
    ours = ours.cpu()
    if ours.shape != expected.shape or ours.dtype != expected.dtype:
        return Measurement(f"{what}: shape and dtype", float("inf"))
    different = ours != expected
    if ours.is_floating_point():
        different &= ~(ours.isnan() & expected.isnan())
    return Measurement(what, float(different.sum()), float(allowed))


def accuracy(
    what: str, ours: Tensor, exact: np.ndarray, torch_fp32: Tensor, torch_elsewhere: float = 0.0
) -> Measurement:
    """The rule of `within_twice_torch`; where the exact value is -inf, ours must be.

    Over a few rows PyTorch may be lucky, so its error on more of the same kind, `torch_elsewhere`, counts too.
    """
    finite = np.isfinite(exact)
    if not finite.all():
        if not np.array_equal(ours.double().numpy()[~finite], exact[~finite]):
            return Measurement(f"{what}: infinities", float("inf"))
        ours, exact, torch_fp32 = ours[torch.from_numpy(finite)], exact[finite], torch_fp32[torch.from_numpy(finite)]
    if exact.size == 0:
        return Measurement(what, 0.0)
    error, allowed = within_twice_torch(ours, exact, torch_fp32)
    return Measurement(what, error, max(allowed, 2.0 * torch_elsewhere))


def gradient(what: str, ours: Tensor, exact: Tensor, torch_same_dtype: Tensor) -> Measurement:
    """Twice the error of PyTorch in the same dtype, plus one unit in the last place of the largest element; a second
    unit where there are fewer than 64 elements, over which PyTorch may be lucky."""
    if ours.numel() == 0:
        return Measurement(what, 0.0)
    exact = exact.double()
    one_ulp = float(exact.abs().max()) * torch.finfo(ours.dtype).eps
    error = float((ours.cpu().double() - exact).abs().max())
    theirs = float((torch_same_dtype.double() - exact).abs().max())
    return Measurement(what, error, 2.0 * theirs + one_ulp * (1 if ours.numel() >= 64 else 2))
