"""Dense float64 oracles, one row at a time in NumPy, written from the definitions alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

U32 = (1 << 32) - 1


@dataclass
class RowOracle:
    """Everything about one row of logits, from its definition."""

    z: np.ndarray  # float64 [V]
    temperature: float = 0.0
    forbidden: tuple[int, ...] = ()
    vocab_limit: int | None = None
    top_k: int = 0
    top_p: float = 1.0
    normalize_all: bool = False
    candidates: np.ndarray = field(init=False)
    kept: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.z = np.asarray(self.z, dtype=np.float64)
        self.candidates = np.ones(self.z.size, dtype=bool)
        self.candidates[list(self.forbidden)] = False
        if self.vocab_limit is not None:
            self.candidates[self.vocab_limit :] = False
        self.divisor = self.temperature if self.temperature > 0 else 1.0
        self.kept = self._filtered()
        self._log_probs: dict[bool, np.ndarray] = {}

    def _filtered(self) -> np.ndarray:
        kept = self.candidates.copy()
        if self.top_p < 1.0:
            values = np.sort(self.z[kept])[::-1]
            mass = np.exp((values - values[0]) / self.divisor).cumsum()
            pivot = values[np.nonzero(mass >= self.top_p * mass[-1])[0][0]]
            kept &= self.z >= pivot
        if self.top_k > 0:
            values = np.sort(self.z[kept])[::-1]
            kept &= self.z >= values[min(self.top_k, values.size) - 1]
        return kept

    @property
    def greedy(self) -> int:
        return int(np.where(self.candidates, self.z, -np.inf).argmax())

    def log_probs(self, tempered: bool) -> np.ndarray:
        """log p of every id; ids outside the normaliser get the value they would have if asked anyway."""
        if tempered not in self._log_probs:
            self._log_probs[tempered] = self._compute_log_probs(tempered)
        return self._log_probs[tempered]

    def _compute_log_probs(self, tempered: bool) -> np.ndarray:
        y = self.z / self.divisor if tempered else self.z
        inside = self.kept if tempered else self.candidates
        if self.normalize_all:
            inside = inside | ~self.candidates
        top = np.flatnonzero(inside)[y[inside].argmax()]
        others = inside.copy()
        others[top] = False
        return (y - y[top]) - np.log1p(np.exp(y[others] - y[top]).sum())

    def margin(self, tempered: bool) -> float:
        inside = self.kept if tempered else self.candidates
        log_p = self.log_probs(tempered)[inside]
        if log_p.size == 1:
            return float(np.exp(log_p[0]))
        second, first = np.exp(np.partition(log_p, -2)[-2:])
        return float(first - second)

    def entropy(self, tempered: bool) -> float:
        inside = self.kept if tempered else self.candidates
        if self.normalize_all:
            inside = inside | ~self.candidates
        log_p = self.log_probs(tempered)[inside]
        log_p = log_p[log_p > -np.inf]
        return float(-(np.exp(log_p) * log_p).sum())

    def cdf(self) -> np.ndarray:
        """Cumulative sampling probabilities in order of ids, float64 [V + 1] with a leading 0."""
        y = np.where(self.kept, self.z / self.divisor, -np.inf)
        w = np.exp(y - y.max())
        return np.concatenate([[0.0], w.cumsum() / w.sum()])


def philox_uniform(seed: int, position: int, step: int, stream: int) -> float:
    """The package's uniform number, from Philox4x32-10 in Python integers."""
    x = [position & U32, step & U32, stream, 0]
    key = [seed & U32, (seed >> 32) & U32]
    for _ in range(10):
        first, second = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(second >> 32) ^ x[1] ^ key[0], second & U32, (first >> 32) ^ x[3] ^ key[1], first & U32]
        key = [(key[0] + 0x9E3779B9) & U32, (key[1] + 0xBB67AE85) & U32]
    return ((((x[0] >> 6) << 26) | (x[1] >> 6)) + 0.5) / 2**52


def within_twice_torch(ours: torch.Tensor, exact: np.ndarray, torch_fp32: torch.Tensor) -> tuple[float, float]:
    """(our largest error, the largest allowed): twice PyTorch's fp32 error plus one unit in the last place."""
    ours64 = ours.double().numpy()
    error = float(np.abs(ours64 - exact).max())
    torch_error = float(np.abs(torch_fp32.double().numpy() - exact).max())
    return error, 2.0 * torch_error + float(np.spacing(np.float32(np.abs(exact).max())))


def commit_oracle(
    confidence: list[float],
    rule: str,
    *,
    quota: int = 0,
    threshold: float = 0.0,
    entropy: list[float] | None = None,
) -> set[int]:
    """Which candidates a rule takes; `confidence` in order of positions."""
    order = sorted(range(len(confidence)), key=lambda i: (-confidence[i], i))
    if rule == "quota":
        return set(order[:quota])
    if rule == "threshold":
        return {i for i in order if confidence[i] >= threshold} | set(order[:1])
    if rule == "quota_threshold":
        above = {i for i in order if confidence[i] > threshold}
        return above if len(above) >= quota else set(order[:quota])
    taken: set[int] = set()
    if rule == "factor":
        for rank, i in enumerate(order, start=1):
            if rank > 1 and np.exp(np.float64(confidence[i])) < 1.0 - threshold / (rank + 1):
                break
            taken.add(i)
        return taken
    assert rule == "entropy_bound" and entropy is not None
    total = 0.0
    for i in sorted(range(len(entropy)), key=lambda i: (entropy[i], i)):
        if taken and total > threshold:
            break
        taken.add(i)
        total += entropy[i]
    return taken
