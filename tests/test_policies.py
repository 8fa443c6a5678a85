"""Policies: EOSER's factors, the statistics asked for, thresholds, and the rows' own seeds and temperatures."""

import torch

import mdlm_fast as mf
from mdlm_fast.policies import (
    discount_kind,
    eoser_factors,
    needed_stats,
    row_seeds,
    row_temperatures,
    threshold_value,
)
from mdlm_fast.rng import derive_seed

CPU = torch.device("cpu")


def test_eoser_factors_are_the_published_ones() -> None:
    linear = eoser_factors(mf.DecodeConfig(steps=8, eoser=mf.EOSER()), 8)
    assert [round(g, 2) for g in linear] == [0.40, 0.49, 0.57, 0.66, 0.74, 0.83, 0.91, 1.0]
    ascending = eoser_factors(mf.DecodeConfig(gen_length=256, schedule="ass", eoser=mf.EOSER()), 8)
    assert [round(g, 3) for g in ascending] == [0.014, 0.022, 0.037, 0.068, 0.130, 0.254, 0.501, 0.996]
    assert eoser_factors(mf.DecodeConfig(steps=1, eoser=mf.EOSER(g_max=0.7)), 1) == [0.7]
    assert eoser_factors(mf.DecodeConfig(eoser=mf.EOSER(g_max=0.2)), 2) == [0.2, 0.2]


def test_only_needed_statistics_are_asked_for() -> None:
    assert needed_stats(mf.DecodeConfig(), True) == ("token", "logp")
    assert needed_stats(mf.DecodeConfig(confidence="random"), False) == ("token",)
    assert needed_stats(mf.DecodeConfig(confidence="margin"), False) == ("token", "margin")
    assert needed_stats(mf.DecodeConfig(temperature=0.7), True) == ("token", "logp", "logp_T")
    tempered = mf.DecodeConfig(temperature=0.7, confidence_from="tempered", confidence="neg_entropy")
    assert needed_stats(tempered, True) == ("token", "logp", "logp_T", "entropy")


def test_thresholds_of_probabilities_are_compared_as_logarithms() -> None:
    rule = {"select": "threshold"}
    assert threshold_value(mf.DecodeConfig(threshold=1.0, **rule)) == 0.0
    assert threshold_value(mf.DecodeConfig(threshold=0.0, **rule)) == -float("inf")
    assert threshold_value(mf.DecodeConfig(threshold=-1.0, **rule)) == -float("inf")
    assert threshold_value(mf.DecodeConfig(threshold=0.3, confidence="margin", **rule)) == 0.3
    kinds = [discount_kind(mf.DecodeConfig(eoser=mf.EOSER(), confidence=c)) for c in ("prob", "margin", "neg_entropy")]
    assert kinds == ["log", "multiply", "log"]
    assert discount_kind(mf.DecodeConfig(eoser=mf.EOSER(), alg_temp=0.1)) == "multiply"


def test_row_seeds() -> None:
    config = mf.DecodeConfig(seed=5)
    assert row_seeds(config, 2, 3, CPU).tolist() == [derive_seed(5, r) for r in range(6)]
    named = config.replace(row_ids=[10, 7])
    assert row_seeds(named, 2, 3, CPU).tolist() == [derive_seed(5, r) for r in (30, 31, 32, 21, 22, 23)]
    unsigned = row_seeds(config.replace(row_ids=[2**64 - 1, 7]), 2, 1, CPU)  # a 64-bit hash, as seeds may be
    assert torch.equal(unsigned, row_seeds(config.replace(row_ids=[-1, 7]), 2, 1, CPU))
    every = config.replace(row_ids=[4, 3, 2, 1])
    assert row_seeds(every, 2, 2, CPU).tolist() == [derive_seed(5, r) for r in (4, 3, 2, 1)]
    given = mf.DecodeConfig(seeds=[9, 2**64 - 1])
    assert row_seeds(given, 2, 1, CPU).tolist() == [9, -1]
    assert row_seeds(given, 2, 2, CPU).tolist() == [derive_seed(s, k) for s in (9, -1) for k in (0, 1)]


def test_row_temperatures() -> None:
    assert row_temperatures(mf.DecodeConfig(temperature=0.5), 2, 2, CPU).tolist() == [0.5] * 4
    assert row_temperatures(mf.DecodeConfig(temperature=(0.0, 1.0)), 2, 2, CPU).tolist() == [0.0, 0.0, 1.0, 1.0]
