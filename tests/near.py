"""Comparing a tensor with numbers from an oracle."""

import torch
from torch import Tensor


def assert_near(found: Tensor, wanted: list[float] | list[list[float]] | Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(
        found, torch.as_tensor(wanted, dtype=found.dtype), atol=tolerance, rtol=tolerance, equal_nan=True
    )
