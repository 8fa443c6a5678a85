"""Self-rewarding sequential Monte Carlo over the particles of a prompt (arXiv 2602.01849)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mdlm_fast import rng
from mdlm_fast.config import SMC
from mdlm_fast.row_state import RowState


def particle_seeds(seeds: Tensor, particles: int) -> Tensor:
    """int64 [groups * particles]: particle 0 keeps its row's seed, so that one particle is plain decoding."""
    number = torch.arange(particles, device=seeds.device)
    derived = rng.derive_seed(
        seeds[:, None].expand(-1, particles).contiguous(), number.expand(len(seeds), -1).contiguous()
    )
    return torch.where(number == 0, seeds[:, None], derived).flatten()


def effective_size(log_weights: Tensor) -> float:
    """1 / sum w^2 of the normalised weights."""
    weights = torch.softmax(log_weights.double(), 0)
    return float(1 / weights.square().sum())


def ancestors(log_weights: Tensor, smc: SMC, seed: Tensor, block: int) -> Tensor | None:
    """The particle that each particle continues from, int64 [n], or None if the weights are even enough to go on.

    log_weights: float [n] of one prompt. seed: int64 scalar, the prompt's. block: the block that just ended; it keys
    the draw, so that the result depends on neither the batch nor the other prompts.
    """
    count = log_weights.shape[0]
    if effective_size(log_weights) >= smc.threshold * count:
        return None
    cumulative = torch.softmax(log_weights.double(), 0).cumsum(0)
    number = torch.arange(count, device=log_weights.device)
    if smc.resampling == "systematic":
        points = (rng.uniform(seed, 0, block, "smc") + number) / count
    else:
        points = rng.uniform(seed.expand(count), number, block, "smc")
    return torch.searchsorted(cumulative, points * cumulative[-1], right=True).clamp(max=count - 1)


class ParticleGroups:
    """Weights of the particles of every row, from the log-probabilities they committed since they were last
    resampled."""

    def __init__(self, smc: SMC, rows: int) -> None:
        self.smc = smc
        self.base = torch.zeros(rows, dtype=torch.float64)

    def resample(self, rows: RowState, members: np.ndarray, block: int) -> np.ndarray | None:
        """Numbers of the rows that ``members``, neighbours, continue from, or None.

        block: the block they enter; it keys the draw.
        """
        total = total_logp(rows, slice(members[0], members[-1] + 1)).cpu()
        source = ancestors(total - self.base[members], self.smc, rows.seeds[members[0]].cpu(), block)
        if source is None:
            return None
        self.base[members] = total[source]
        return members[source.numpy()]


def total_logp(rows: RowState, part: slice = slice(None)) -> Tensor:
    """float64 [n], the sum of the log-probabilities of the committed tokens of all rows or of some."""
    assert rows.commit_logp is not None
    committed = rows.eligible[part] & ~rows.masked[part]
    return torch.where(committed, rows.commit_logp[part], 0.0).sum(1, dtype=torch.float64)
