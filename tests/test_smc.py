"""Particles: one is plain decoding, resampling follows the weights, prompts do not disturb each other."""

import copy
import math
from collections import Counter

import pytest
import torch
from decode_oracle import NaiveDecoder, uniform
from hash_scorer import MASK, VOCAB, HashScorer
from scipy.stats import chisquare

import mdlm_fast as mf
from mdlm_fast import rng, smc


def prompts(count: int) -> torch.Tensor:
    return torch.randint(2, VOCAB - 1, (count, 4), generator=torch.Generator().manual_seed(1))


BASE = mf.DecodeConfig(gen_length=12, block_length=4, steps=6, temperature=1.3, seed=4)


@pytest.mark.parametrize("rule", [{}, {"select": "threshold", "threshold": 0.3, "steps": None}])
def test_one_particle_is_plain_decoding(rule: dict) -> None:
    plain = mf.generate(HashScorer(), prompts(3), config=BASE, **rule)
    one = mf.generate(HashScorer(), prompts(3), config=BASE, smc=mf.SMC(1), **rule)
    assert torch.equal(plain.sequences, one.sequences)
    assert torch.equal(plain.trajectory.commit_logp, one.trajectory.commit_logp)


@pytest.mark.parametrize("rule", [{}, {"select": "threshold", "threshold": 0.3, "steps": None}])
@pytest.mark.parametrize("extra", [{}, {"stop_at_eos": True}, {"remasking": mf.RCR()}])
def test_particles_of_a_prompt_are_independent_of_the_batch(rule: dict, extra: dict) -> None:
    if rule and "remasking" in extra:
        rule = {"schedule": "cosine"}
    config = BASE.replace(smc=mf.SMC(4, threshold=1.0), **rule, **extra)
    whole = mf.generate(HashScorer(), prompts(3), config=config)
    assert whole.sequences.shape == (3, 16) and (whole.sequences != MASK).all()
    waiting = mf.generate(HashScorer(), prompts(3), config=config, max_batch=5)
    assert torch.equal(whole.sequences, waiting.sequences)
    alone = mf.generate(HashScorer(), prompts(3)[2:], config=config, row_ids=[2])
    assert torch.equal(alone.sequences[0], whole.sequences[2])
    for state, again in zip(whole.trajectory, waiting.trajectory, strict=True):
        assert torch.equal(state, again)


def test_the_best_particle_is_returned() -> None:
    # Without resampling, particle 0 has the row's seed and particle k the one derived from it.
    config = BASE.replace(smc=mf.SMC(5, threshold=0.0))
    best = mf.generate(HashScorer(), prompts(1), config=config)
    seed = rng.derive_seed(4, 0)
    seeds = [seed, *(rng.derive_seed(seed, k) for k in range(1, 5))]
    alone = mf.generate(HashScorer(), prompts(1).expand(5, -1), config=BASE, seed=None, seeds=seeds)
    total = alone.trajectory.commit_logp.double().sum(1)
    assert torch.equal(best.sequences[0], alone.sequences[total.argmax()])


def naive_smc(prompt: list[int], config: mf.DecodeConfig, row: int, scale: float) -> tuple[NaiveDecoder, int]:
    """Particles one after the other, systematic resampling; also the number of ancestors that survived in all."""
    count = config.smc.particles
    seed = rng.derive_seed(config.seed, row)
    seeds = [seed, *(rng.derive_seed(seed, k) for k in range(1, count))]
    particles = [NaiveDecoder(prompt, config, s) for s in seeds]
    for particle in particles:
        particle.scale = scale
    base, survivors = [0.0] * count, 0
    for block in range(len(config.blocks())):
        for particle in particles:
            particle.run_block(block)
        totals = [particle.total_logp() for particle in particles]
        gains = [math.exp(t - b - max(totals)) for t, b in zip(totals, base, strict=True)]
        weights = [g / sum(gains) for g in gains]
        if block + 1 == len(config.blocks()) or 1 / sum(w * w for w in weights) >= config.smc.threshold * count:
            continue
        u = uniform(seed, 0, block + 1, "smc")
        points = [(u + i) / count for i in range(count)]
        source = [next(i for i in range(count) if sum(weights[: i + 1]) > p) for p in points]
        survivors += len(set(source))
        particles = [copy.deepcopy(particles[i]) for i in source]
        base = [totals[i] for i in source]
        for particle, own in zip(particles, seeds, strict=True):
            particle.seed = own
    return max(particles, key=NaiveDecoder.total_logp), survivors


@pytest.mark.parametrize(
    "rule",
    [{}, {"select": "threshold", "threshold": 0.08, "steps": None}, {"remasking": mf.RCR(), "schedule": "linear"}],
)
def test_against_particles_decoded_one_by_one(rule: dict) -> None:
    config = BASE.replace(smc=mf.SMC(4, threshold=0.97), temperature=1.0, **rule)
    survivors = 0
    scorer = HashScorer()
    scorer.scale = 2.0
    ids = prompts(6)
    out = mf.generate(scorer, ids, config=config)
    for row in range(6):
        want, more = naive_smc(ids[row].tolist(), config, row, scorer.scale)
        survivors += more
        record = want.finish()
        assert out.sequences[row].tolist() == record.tokens
        assert out.trajectory.commit_step[row].tolist() == record.commit_step
        for step in range(out.trajectory.steps):
            if step < record.steps:
                assert out.trajectory.states(step)[row].tolist() in record.states
    assert survivors > 12  # several ancestors at a time, or the weights would not be tested


def test_particles_raise_the_likelihood() -> None:
    ids = prompts(1).expand(24, -1)
    plain = mf.generate(HashScorer(), ids, config=BASE).trajectory.commit_logp.sum(1).mean()
    many = mf.generate(HashScorer(), ids, config=BASE, smc=mf.SMC(6)).trajectory.commit_logp.sum(1).mean()
    assert many > plain + 1


def test_equal_particles_share_a_forward_after_resampling() -> None:
    scorer = HashScorer()
    mf.generate(scorer, prompts(1), config=BASE, smc=mf.SMC(6, threshold=1.0))
    assert scorer.batches[0] == 1 and min(scorer.batches[2::2]) < 6 and scorer.batches[1] == 6


@pytest.mark.parametrize("resampling", ["systematic", "multinomial"])
def test_ancestors_follow_the_weights(resampling: str) -> None:
    weights = torch.tensor([0.55, 0.25, 0.15, 0.05], dtype=torch.float64)
    rule = mf.SMC(4, resampling=resampling, threshold=1.0)
    counts: Counter[int] = Counter()
    trials = 1500
    for trial in range(trials):
        source = smc.ancestors(weights.log(), rule, torch.tensor(rng.derive_seed(9, trial)), 2)
        counts.update(source.tolist())
        if resampling == "systematic":
            for particle, weight in enumerate(weights):
                copies = int((source == particle).sum())
                assert int(4 * weight) <= copies <= int(4 * weight) + 1
    found = [counts[i] for i in range(4)]
    if resampling == "multinomial":
        assert chisquare(found, [4 * trials * float(w) for w in weights]).pvalue > 1e-3
    else:
        assert torch.allclose(torch.tensor(found) / (4 * trials), weights.float(), atol=0.01)


def test_even_weights_are_not_resampled() -> None:
    assert smc.effective_size(torch.zeros(4)) == pytest.approx(4)
    assert smc.ancestors(torch.zeros(4), mf.SMC(4), torch.tensor(1), 0) is None
    assert smc.ancestors(torch.tensor([0.0, -9, -9, -9]), mf.SMC(4), torch.tensor(1), 0).tolist() == [0] * 4
