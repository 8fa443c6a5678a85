"""Statistics over the members of each group, without a loop over groups, and checks of arguments that come in groups.

Every statistic is taken of ``value - smallest value of the group``. Deviations do not change under a shift, and so the
members of a group of equal values deviate by exactly 0: the mean of n equal floats may round, the mean of n zeros does
not. NaN is a value that is not there: it is left out, and its deviation is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Groups:
    """Sums and minima over the members of each group, written back to every member: [N, ...] -> [N, ...].

    ids: int64 [N], any numbers in any order.
    """

    def __init__(self, ids: Tensor) -> None:
        unique, self.index = torch.unique(ids, return_inverse=True)
        self.count = unique.shape[0]

    def sum(self, values: Tensor) -> Tensor:
        totals = values.new_zeros(self.count, *values.shape[1:])
        return totals.index_add_(0, self.index, values)[self.index]

    def smallest(self, values: Tensor) -> Tensor:
        index = self.index.view(-1, *[1] * (values.dim() - 1)).expand_as(values)
        lows = values.new_zeros(self.count, *values.shape[1:])
        return lows.scatter_reduce_(0, index, values, "amin", include_self=False)[self.index]

    def above_smallest(self, values: Tensor) -> Tensor:
        """values - smallest of the group; 0 where NaN."""
        there = ~values.isnan()
        return (values - self.smallest(values.where(there, torch.inf))).where(there, 0.0)

    def deviations(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(values - mean of the group, 0 where NaN; how many of the group are not NaN, in the dtype of values)."""
        there = ~values.isnan()
        above = self.above_smallest(values)
        number = self.sum(there.to(values.dtype))
        return (above - self.sum(above) / number.clamp(min=1)).where(there, 0.0), number

    def standard_deviation(self, values: Tensor, unbiased: bool) -> Tensor:
        """Of every member's group; 0 for a single value."""
        deviation, number = self.deviations(values)
        return (self.sum(deviation.square()) / (number - int(unbiased)).clamp(min=1)).sqrt()

    def z_scores(self, values: Tensor, unbiased: bool, eps: float) -> Tensor:
        """Deviation / (standard deviation + eps), 0 where NaN."""
        return divide(self.deviations(values)[0], self.standard_deviation(values, unbiased), eps)

    def softmax(self, energy: Tensor, there: Tensor) -> Tensor:
        """exp(energy) over its sum in the group, of the members that are ``there``; 0 for the others."""
        peak = -self.smallest((-energy).where(there, torch.inf))
        share = (energy - peak).exp().where(there, 0.0)
        return (share / self.sum(share)).where(there, 0.0)


def divide(deviation: Tensor, spread: Tensor, eps: float) -> Tensor:
    """deviation / (spread + eps), and 0 where eps and the spread are 0, because then so is the deviation."""
    divisor = spread + eps
    return deviation / divisor.where(divisor != 0, 1.0)


def check_floating(function: str, name: str, value: Tensor, dims: int) -> None:
    """Refuse ``value`` unless it is float32 or float64 of one ([N]) or two ([B, S]) dimensions."""
    if value.dim() != dims:
        wanted = "[N]" if dims == 1 else "[B, S] or [N, F]"
        raise ValueError(f"{function}: {name} must have shape {wanted}, got {list(value.shape)}")
    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{function}: {name} must be float32 or float64, got {value.dtype}; convert it with .float()")


def check_rows(function: str, name: str, value: Tensor, groups: Tensor, dims: int) -> None:
    """Refuse ``value`` as `check_floating` does, and ``groups`` unless it is int64 with one id for each of its rows."""
    check_floating(function, name, value, dims)
    if groups.dtype != torch.int64:
        raise TypeError(f"{function}: groups must be int64, got {groups.dtype}")
    if groups.shape != value.shape[:1]:
        raise ValueError(
            f"{function}: groups must have shape [{value.shape[0]}], one id for each row of {name}, "
            f"got {list(groups.shape)}"
        )
    if groups.device != value.device:
        raise ValueError(f"{function}: {name} is on {value.device}, groups on {groups.device}; move one of them")
