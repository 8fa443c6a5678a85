"""Policies: what positions are ranked by, and what a configuration asks of the ops."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mdlm_fast import rng
from mdlm_fast.ops import RowScores

if TYPE_CHECKING:
    from mdlm_fast.config import DecodeConfig


def tempered_equals_raw(config: DecodeConfig) -> bool:
    """Whether the tempered distribution is the raw one: temperatures of 0 and 1 only, and no filter."""
    temperatures = config.temperature if isinstance(config.temperature, tuple) else (config.temperature,)
    return config.top_k is None and config.top_p is None and set(temperatures) <= {0.0, 1.0}


def needed_stats(config: DecodeConfig, keep_logp: bool) -> tuple[str, ...]:
    """The statistics of a row that this configuration uses. keep_logp: they are recorded or weigh particles."""
    stats = {"token"}
    same = tempered_equals_raw(config)
    if keep_logp:
        stats |= {"logp"} if same else {"logp", "logp_T"}
    if config.confidence == "prob":
        stats.add("logp_T" if config.confidence_from == "tempered" and not same else "logp")
    elif config.confidence == "margin":
        stats.add("margin")
    elif config.confidence == "neg_entropy":
        stats.add("entropy")
    return tuple(name for name in ("token", "logp", "logp_T", "margin", "entropy") if name in stats)


def confidence_of(
    config: DecodeConfig, scores: RowScores, seeds: Tensor, row_sequence: Tensor, row_position: Tensor, step: Tensor
) -> Tensor:
    """Confidence of scored rows, float32 [C], higher first.

    ``prob`` is a log-probability, which does not saturate as a probability does, except with alg_temp: Dream weighs
    positions with exp(probability / alg_temp).
    """
    if config.confidence == "random":
        of_row = row_sequence.long()
        return rng.random_confidence(seeds[of_row], row_position, step if step.numel() == 1 else step[of_row])
    if config.confidence == "margin":
        assert scores.margin is not None
        return scores.margin
    if config.confidence == "neg_entropy":
        assert scores.entropy is not None
        return -scores.entropy
    tempered = config.confidence_from == "tempered" and not tempered_equals_raw(config)
    logp = scores.logp_T if tempered else scores.logp
    assert logp is not None
    return logp.exp() if config.alg_temp else logp


def discount_kind(config: DecodeConfig) -> str:
    """How EOSER's factor enters the confidence: added as a logarithm, or multiplied."""
    if config.eoser is None or config.confidence == "random":
        return "none"
    if config.confidence == "margin" or (config.confidence == "prob" and config.alg_temp):
        return "multiply"
    return "log"


def eoser_factors(config: DecodeConfig, total_steps: int) -> list[float]:
    """EOSER's factor at every step index (arXiv 2509.23924), float32 arithmetic left to the caller."""
    eoser = config.eoser
    if eoser is None:
        return []
    ascending = config.schedule == "ass"
    low = eoser.g_min if eoser.g_min is not None else min(0.01 if ascending else 0.4, eoser.g_max)
    if total_steps == 1:
        return [eoser.g_max]
    if ascending:
        # The share revealed after each step; exact in float64 for the few steps this schedule has.
        times = [(2 ** (i + 1) - 1) / 2**total_steps for i in range(total_steps)]
    else:
        times = [i / (total_steps - 1) for i in range(total_steps)]
    return [low + (eoser.g_max - low) * t for t in times]


def threshold_value(config: DecodeConfig) -> float | None:
    """The parameter of the selection rule in the space of the confidence: thresholds of probabilities as logarithms."""
    if config.select == "factor":
        return config.factor
    if config.select == "entropy_bound":
        return config.entropy_bound
    if config.select not in ("threshold", "quota_threshold"):
        return None
    assert config.threshold is not None
    if config.confidence != "prob":
        return config.threshold
    return math.log(config.threshold) if config.threshold > 0 else -math.inf


def row_temperatures(config: DecodeConfig, prompts: int, copies: int, device: torch.device) -> Tensor:
    """float32 [prompts * copies], the temperature of every row."""
    if not isinstance(config.temperature, tuple):
        return torch.full((prompts * copies,), config.temperature, dtype=torch.float32, device=device)
    if len(config.temperature) != prompts:
        raise ValueError(
            f"temperature has {len(config.temperature)} values for {prompts} prompts: give one each, or a number"
        )
    return torch.tensor(config.temperature, dtype=torch.float32, device=device).repeat_interleave(copies)


def row_seeds(config: DecodeConfig, prompts: int, copies: int, device: torch.device) -> Tensor:
    """int64 [prompts * copies], the seed of every row.

    Copy k of prompt r has the row id row_ids[r] * copies + k, or the id the caller gave it; with ``seeds``, copy k of a
    prompt derives its seed from the prompt's and k.
    """
    rows = prompts * copies
    for name in ("seeds", "row_ids"):
        given = getattr(config, name)
        if given is not None and len(given) not in (prompts, rows):
            raise ValueError(f"{name} has {len(given)} values for {prompts} prompts and {rows} rows: give one each")
    copy = torch.arange(rows, device=device) % copies
    if config.seeds is not None:
        seeds = torch.tensor([rng.signed64(s) for s in config.seeds], dtype=torch.int64, device=device)
        if len(config.seeds) == rows:
            return seeds
        return rng.derive_seed(seeds.repeat_interleave(copies), copy)
    ids = torch.arange(rows, device=device)
    if config.row_ids is not None:
        ids = torch.tensor([rng.signed64(i) for i in config.row_ids], dtype=torch.int64, device=device)
        if len(config.row_ids) != rows:
            ids = ids.repeat_interleave(copies) * copies + copy
    seed = config.seed if config.seed is not None else int(torch.randint(2**62, ()))
    return rng.derive_seed(seed, ids)
