"""Analyses of trajectories, against scipy and hand-made records."""

import pytest
import torch
from hash_scorer import HashScorer
from scipy.stats import kendalltau

import mdlm_fast as mf
from mdlm_fast import analysis


def record(steps: list[list[int]], tokens: list[list[int]] | None = None) -> mf.Trajectory:
    commit = torch.tensor(steps, dtype=torch.int16)
    sequences = torch.tensor(tokens) if tokens else torch.zeros(commit.shape, dtype=torch.int64)
    values = torch.arange(commit.numel(), dtype=torch.float32).view(commit.shape)
    values = values.masked_fill(commit < 0, 0)
    return mf.Trajectory(
        sequences=sequences,
        commit_step=commit,
        commit_logp=-values,
        commit_logp_T=-values,
        commit_confidence=values,
        eligible=commit >= 0,
        mask_id=9,
        forbidden_ids=(9,),
        vocab_limit=None,
        row_steps=(commit.amax(1) + 1).to(torch.int32),
    )


def test_generation_order_is_kendalls_tau_b() -> None:
    generator = torch.Generator().manual_seed(1)
    steps = torch.randint(-1, 6, (20, 15), generator=generator)
    found = analysis.generation_order(record(steps.tolist()))
    for row, tau in zip(steps, found, strict=True):
        kept = row[row >= 0]
        want = kendalltau(torch.arange(len(kept)), kept).statistic
        assert tau.item() == pytest.approx(want, abs=1e-12)
    ends = analysis.generation_order(record([[0, 1, 2, 3], [3, 2, 1, 0], [0, 0, 0, 0], [-1, 2, -1, -1]]))
    assert ends[:2].tolist() == [1.0, -1.0] and ends[2:].isnan().all()


def test_parallelism_counts_only_busy_steps() -> None:
    found = analysis.finalisation_parallelism(record([[0, 0, 5, 5], [0, 1, 2, -1]]))
    assert found.tolist() == [2.0, 1.0]


def test_step_profile() -> None:
    profile = analysis.step_profile(record([[-1, 0, 2, 2]], [[7, 1, 1, 4]]), eos_ids=(1,))
    assert profile.tokens.tolist() == [1.0, 0.0, 2.0]
    assert profile.confidence[0] == 1.0 and profile.confidence[1].isnan() and profile.confidence[2] == 2.5
    assert profile.logp[2] == -2.5
    assert profile.eos_share[[0, 2]].tolist() == [1.0, 0.5]


def test_entropy_and_remasking_of_a_real_decode() -> None:
    ids = torch.tensor([[5, 6, 7]])
    config = mf.DecodeConfig(gen_length=8, steps=4, record="full", confidence="neg_entropy", remasking=mf.RCR())
    trajectory = mf.generate(HashScorer(), ids, config=config).trajectory
    entropy = analysis.predicted_entropy(trajectory)
    assert entropy.shape == (4,) and (entropy > 0).all()
    assert analysis.remasked_share(trajectory).item() == pytest.approx(1 - 8 / (8 + 6 + 4 + 2))
    plain = mf.generate(HashScorer(), ids, gen_length=8, steps=4).trajectory
    assert analysis.remasked_share(plain).item() == 0
    with pytest.raises(ValueError, match='record="full"'):
        analysis.predicted_entropy(plain)
