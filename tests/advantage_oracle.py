"""Advantages of completions in plain Python, and random rows to take them of."""

import math

import torch
from torch import Tensor


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def deviation(values: list[float], unbiased: bool = True) -> float:
    if len(values) < 2:
        return 0.0
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - unbiased))


def scored_of(group: int, rewards: list[float], groups: list[int]) -> list[float]:
    return [r for r, g in zip(rewards, groups, strict=True) if g == group and not math.isnan(r)]


def oracle_group(rewards: list[float], groups: list[int], scale: str, unbiased: bool, eps: float) -> list[float]:
    batch = deviation([r for r in rewards if not math.isnan(r)], unbiased)
    found = []
    for reward, group in zip(rewards, groups, strict=True):
        others = scored_of(group, rewards, groups)
        if math.isnan(reward) or len(set(others)) == 1:
            found.append(0.0)
            continue
        spread = {"none": 1.0, "group": deviation(others, unbiased) + eps, "batch": batch + eps}[scale]
        found.append((reward - mean(others)) / spread)
    return found


def random_rows(seed: int, nan: bool = True) -> tuple[Tensor, Tensor]:
    """float64 rewards [N], some NaN, and groups of 2 to 6 rows in mixed order with scattered ids."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 7, (9,), generator=generator)
    ids = torch.randint(-(2**60), 2**60, (9,), generator=generator)
    groups = ids.repeat_interleave(sizes)
    rewards = torch.randn(len(groups), dtype=torch.float64, generator=generator) * 3
    if nan:
        rewards[torch.rand(len(groups), generator=generator) < 0.25] = math.nan
        rewards[groups == ids[0]] = math.nan  # nothing scored this group
    order = torch.randperm(len(groups), generator=generator)
    return rewards[order], groups[order]
