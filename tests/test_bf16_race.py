"""The released bfloat16 draw: what it does to a distribution, and that everything beside the token stays true."""

import numpy as np
import pytest
import torch

import mdlm_fast as mf
from mdlm_fast import ops
from mdlm_fast.bf16_race import bf16_uniforms, race, raced_scores
from tests.hash_scorer import MASK, VOCAB, HashScorer


def rows(count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    zeros = torch.zeros(count, dtype=torch.int64)
    return {"seeds": zeros + seed, "position": torch.arange(count), "step": zeros + 2}


def test_uniforms_are_bfloat16_and_end_at_255_of_256() -> None:
    u = bf16_uniforms(**rows(200, 3), width=1001)
    assert u.dtype == torch.bfloat16 and u.shape == (200, 1001)
    assert float(u.max()) == 255 / 256 and float(u.min()) >= 0
    counts = np.histogram(u.float().numpy(), bins=8, range=(0, 1))[0]
    assert abs(counts / u.numel() - 1 / 8).max() < 3e-3
    assert torch.equal(u[5:7], bf16_uniforms(torch.tensor([3, 3]), torch.tensor([5, 6]), torch.tensor([2, 2]), 1001))


def test_the_tail_is_never_drawn_and_an_exact_draw_draws_it() -> None:
    """One token holds half the mass, 4095 others the rest: the race returns it almost always."""
    width, draws = 4096, 600
    logits = torch.zeros(1, width)
    logits[0, 9] = float(np.log(width - 1))
    many, allowed = logits.expand(draws, width), torch.ones(width, dtype=torch.bool)
    raced = race(many, torch.ones(draws), **rows(draws), allowed=allowed)
    exact = ops.score_rows(many, temperature=1.0, seeds=1, stats=("token",)).token
    assert float((raced == 9).float().mean()) > 0.985
    assert 0.43 < float((exact == 9).float().mean()) < 0.57


@pytest.mark.parametrize("temperature", (0.5, 1.0))
def test_flat_rows_are_drawn_as_a_softmax_is(temperature: float) -> None:
    """Where nothing lies far below the best, the race is right up to its ties: shares of 6 levels within 4%."""
    draws = 12000
    logits = torch.tensor([[0.0, 0.3, -0.4, 0.9, 0.1, -0.8]])
    token = race(
        logits.expand(draws, 6), torch.full((draws,), temperature), **rows(draws, 8), allowed=torch.ones(6).bool()
    )
    wanted = (logits[0].double() / temperature).softmax(0)
    assert float((torch.bincount(token, minlength=6) / draws - wanted).abs().max()) < 0.04


@pytest.mark.parametrize("normalize_over", ("allowed", "all"))
def test_scores_are_those_of_the_winner_under_the_true_distribution(normalize_over: str) -> None:
    torch.manual_seed(1)
    logits = 2 * torch.randn(6, 40)
    options = {
        "row_sequence": torch.tensor([0, 0, 1, 1, 2, 2], dtype=torch.int32),
        "row_position": torch.arange(6, dtype=torch.int32),
        "temperature": torch.tensor([0.7, 1.0, 0.0]),
        "seeds": torch.tensor([1, 2, 3]),
        "step": torch.tensor([4]),
        "forbidden_ids": torch.tensor([39, 7]),
        "vocab_limit": 38,
        "sample": True,
        "normalize_over": normalize_over,
        "stats": ("token", "logp", "logp_T", "margin"),
        "stats_from": "raw",
    }
    found = raced_scores(logits, torch.tensor([0, 1, 2, -1, 4, 5], dtype=torch.int32), options)
    assert found.token[3] == -1 and found.logp is not None and found.logp_T is not None
    outside = torch.tensor([7, 38, 39])
    for row in (0, 1, 2, 4, 5):
        z = logits[row].double()
        if normalize_over == "allowed":
            z[outside] = -torch.inf
        token, temperature = int(found.token[row]), (0.7, 0.7, 1.0, 1.0, 0.0, 0.0)[row]
        assert token not in outside
        torch.testing.assert_close(found.logp[row].double(), z.log_softmax(0)[token], atol=1e-5, rtol=0)
        tempered = (z / (temperature or 1.0)).log_softmax(0)[token]
        torch.testing.assert_close(found.logp_T[row].double(), tempered, atol=1e-5, rtol=0)
        z[outside] = -torch.inf
        assert temperature > 0 or token == int(z.argmax())


def test_decoding_with_it_is_reproducible_and_independent_of_the_batch() -> None:
    prompts = torch.randint(2, VOCAB - 1, (4, 3), generator=torch.Generator().manual_seed(2))
    config = mf.DecodeConfig(gen_length=12, steps=4, temperature=1.0, sampler="gumbel_bf16", seeds=(5, 6, 7, 8))
    whole = mf.generate(HashScorer(), prompts, config=config)
    alone = mf.generate(HashScorer(), prompts[2:3], config=config.replace(seeds=(7,)))
    assert torch.equal(whole.sequences[2:3], alone.sequences)
    assert not (whole.sequences == MASK).any()
    exact = mf.generate(HashScorer(), prompts, config=config.replace(sampler="exact"))
    assert not torch.equal(whole.sequences, exact.sequences)
    greedy = [
        mf.generate(HashScorer(), prompts, config=config.replace(temperature=0.0, sampler=sampler)).sequences
        for sampler in ("exact", "gumbel_bf16")
    ]
    assert torch.equal(*greedy)


@pytest.mark.parametrize("other", ({"top_p": 0.9}, {"top_k": 5}, {"cfg_scale": 1.0}, {"cuda_graph": True}))
def test_what_the_released_draw_does_not_know_is_refused(other: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"knows no {next(iter(other))}"):
        mf.DecodeConfig(temperature=1.0, sampler="gumbel_bf16", **other)
    with pytest.raises(ValueError, match="sampler='gumbel': choose one of exact, gumbel_bf16"):
        mf.DecodeConfig(sampler="gumbel")
