"""Draws are exact: the interval rule for every u, the right tails, and nothing counts but seed, position and step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import RowOracle, philox_uniform
from scipy import stats

from mdlm_fast import ops, rng

SLACK = 2.0**-20


def assert_in_intervals(tokens: torch.Tensor, exact: list[RowOracle], u: list[float]) -> None:
    """C(v - 1) - 2^-20 <= u < C(v) + 2^-20, and v has mass."""
    for token, oracle, value in zip(tokens.tolist(), exact, u, strict=True):
        cdf = oracle.cdf()
        assert cdf[token] - SLACK <= value < cdf[token + 1] + SLACK
        assert oracle.kept[token] and oracle.z[token] > -np.inf


@pytest.mark.ops("score_rows")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("width", (1, 2, 31, 2048, 2049, 9000))
def test_the_draw_is_the_quantile_of_the_documented_uniform(backend: str, width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(width)
    logits = (torch.randn(40, width, generator=generator) * torch.linspace(0, 9, 40)[:, None]).to(dtype)
    seed = -0x123456789ABCDEF
    position = torch.randint(0, 4000, (40,), generator=generator, dtype=torch.int32)
    for temperature, options in ((1.0, {}), (0.3, {"top_k": 7}), (2.5, {"top_p": 0.7}), (0.9, {"forbidden_ids": [1]})):
        if width == 1 and "forbidden_ids" in options:
            continue
        scores = ops.score_rows(
            logits,
            row_position=position,
            temperature=temperature,
            seeds=torch.tensor([seed]),
            step=17,
            **options,
        )
        u = [philox_uniform(seed, p, 17, 0) for p in position.tolist()]
        wanted = {"forbidden": (1,)} if "forbidden_ids" in options else options
        exact = [RowOracle(row, temperature=temperature, **wanted) for row in logits.double().numpy()]
        assert_in_intervals(scores.token, exact, u)


@pytest.mark.ops("score_rows")
def test_the_draw_with_infinities_and_empty_tiles(backend: str) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(50, 7000, generator=generator)
    logits[torch.rand(50, 7000, generator=generator) < 0.7] = -np.inf
    logits[:25, 2048:4096] = -np.inf
    logits[:, 6999] = 3.0
    seeds = torch.arange(50)
    scores = ops.score_rows(
        logits, row_sequence=torch.arange(50, dtype=torch.int32), temperature=0.8, seeds=seeds, row_position=None
    )
    u = [philox_uniform(seed, seed, 0, 0) for seed in range(50)]
    assert_in_intervals(scores.token, [RowOracle(row, temperature=0.8) for row in logits.double().numpy()], u)


@pytest.mark.ops("score_rows")
@pytest.mark.parametrize("gap", (12.0, 16.0, 18.0, 20.0))
def test_trap_n1_tails_of_the_real_vocabulary(backend: str, gap: float) -> None:
    """One token `gap` nats above 126,463 others, which hold between 0.03% and 44% of the mass: Gumbel noise from bf16
    or fp32 uniforms would lose them (it stops at 5.5 and 16.6)."""
    width, draws = 126464, 20000 if backend == "cpp" else 40
    row = torch.zeros(1, width)
    row[0, 777] = gap
    logits = row.expand(draws, width)
    tokens = ops.score_rows(logits, temperature=1.0, seeds=int(gap), stats=("token",)).token
    rest = (width - 1) * np.exp(-gap)
    share = rest / (1.0 + rest)
    tail = tokens[tokens != 777]
    assert stats.binomtest(len(tail), draws, share).pvalue > 1e-4
    if len(tail) > 200:  # the tail is uniform over its ids
        counts = np.histogram(tail.numpy(), bins=16, range=(0, width))[0]
        assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.ops("score_rows")
def test_trap_n1_chi_square_over_the_real_vocabulary(backend: str) -> None:
    """Levels at 0, 12, 16, 18 and 20 nats below the top, in scattered ids; the mean of -log p matches the entropy."""
    generator = torch.Generator().manual_seed(5)
    width, draws = 126464, 20000 if backend == "cpp" else 64
    level = torch.tensor([0.0, -12.0, -16.0, -18.0, -20.0])
    size = torch.tensor([2, 6000, 40000, 40000, 40462])
    members = torch.arange(5).repeat_interleave(size)[torch.randperm(width, generator=generator)]
    row = level[members][None]
    temperature = 1.4
    scores = ops.score_rows(
        row.expand(draws, width),
        temperature=temperature,
        seeds=9,
        stats=("token", "logp_T", "entropy"),
        stats_from="tempered",
    )
    oracle = RowOracle(row[0].double().numpy(), temperature=temperature)
    log_p = oracle.log_probs(True)
    expected = draws * np.bincount(members.numpy(), np.exp(log_p))
    observed = np.bincount(members[scores.token].numpy(), minlength=5)
    rare = expected < 5.0  # few draws: the rare levels count as one
    if rare.any():
        expected, observed = (np.append(x[~rare], x[rare].sum()) for x in (expected, observed))
    assert stats.chisquare(observed, expected).pvalue > 1e-4
    np.testing.assert_allclose(scores.logp_T, log_p[scores.token.numpy()], rtol=1e-5)
    deviation = np.sqrt((np.exp(log_p) * (log_p + oracle.entropy(True)) ** 2).sum() / draws)
    assert abs(float(-scores.logp_T.double().mean()) - oracle.entropy(True)) < 4.5 * deviation
    np.testing.assert_allclose(scores.entropy[0], oracle.entropy(True), rtol=1e-5)


@pytest.mark.ops("score_rows")
def test_trap_l4_a_row_does_not_see_its_neighbours(backend: str) -> None:
    """Bit-identical whatever the batch, the order of rows, padding slots, place in memory or number of threads."""
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(2, 37, 5000, generator=generator).to(torch.bfloat16)
    seeds = torch.tensor([11, 12])
    arguments = {"temperature": torch.tensor([0.7, 1.0]), "seeds": seeds, "step": 3, "forbidden_ids": [4]}
    everything = ops.score_rows(logits, **arguments)
    rows = torch.randperm(74, generator=generator)[:21].to(torch.int32)
    rows[[3, 9]] = -1
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        some = ops.score_rows(logits, rows, **arguments)
        torch.set_num_threads(threads)
        for ours, whole in zip(some, everything, strict=True):
            assert torch.equal(ours[rows >= 0], whole[rows[rows >= 0].long()])
    alone = ops.score_rows(
        logits[1, 20:21].clone(),
        row_position=torch.tensor([20], dtype=torch.int32),
        temperature=1.0,
        seeds=seeds[1:],
        step=3,
        forbidden_ids=[4],
    )
    for ours, whole in zip(alone, everything, strict=True):
        assert torch.equal(ours[0], whole[37 + 20])


@pytest.mark.ops("score_rows")
def test_positions_steps_and_seeds_give_different_draws(backend: str) -> None:
    row = torch.zeros(1, 4096).expand(64, 4096)
    first = ops.score_rows(row, temperature=1.0, seeds=1).token
    assert first.unique().numel() > 55
    assert (ops.score_rows(row, temperature=1.0, seeds=2).token != first).sum() > 55
    assert (ops.score_rows(row, temperature=1.0, seeds=1, step=1).token != first).sum() > 55
    assert torch.equal(ops.score_rows(row, temperature=1.0, seeds=1).token, first)
    both = row[None].expand(2, 64, 4096)
    per_sequence = ops.score_rows(both, temperature=1.0, seeds=1).token.view(2, 64)
    assert (per_sequence[0] != per_sequence[1]).sum() > 55
    key = torch.tensor([rng.derive_seed(1, 0), rng.derive_seed(1, 1)])
    assert torch.equal(ops.score_rows(both, temperature=1.0, seeds=key).token, per_sequence.view(-1))


@pytest.mark.ops("score_rows")
@pytest.mark.parametrize("width", (40, 5000))
def test_trap_n2_small_temperatures_converge_to_the_argmax(backend: str, width: int) -> None:
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(30, width, generator=generator) * 5
    argmax = logits.argmax(-1)
    for temperature in (1e-4, 1e-10, 1e-30, 1e-40):
        scores = ops.score_rows(logits, temperature=temperature, seeds=5, stats_from="tempered")
        assert torch.equal(scores.token, argmax), temperature
        assert (scores.logp_T == 0).all() and (scores.entropy == 0).all()
    tied = torch.zeros(200, 2)
    tokens = ops.score_rows(tied, temperature=1e-30, seeds=5).token
    assert 60 < int(tokens.sum()) < 140  # ties stay a fair draw


@pytest.mark.ops("score_rows")
def test_draws_agree_across_backends(backend: str) -> None:
    """Two correct implementations may differ where u falls on a boundary; on flat rows in at most 1% of draws."""
    logits = torch.randn(400, 3000, generator=torch.Generator().manual_seed(9)) * 0.1
    ours = ops.score_rows(logits, temperature=1.0, seeds=4).token
    with ops.use_backend("reference"):
        reference = ops.score_rows(logits, temperature=1.0, seeds=4).token
    assert (ours != reference).float().mean() <= 0.01
