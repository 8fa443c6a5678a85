"""Selection and mask-state traps, on models whose confidences are written down."""

import math
from collections import Counter

import pytest
import torch
from hash_scorer import EOS, MASK, VOCAB, HashScorer, TableScorer, table_of
from scipy.stats import chisquare

import mdlm_fast as mf
from mdlm_fast.schedules import schedule_table

EMPTY = torch.zeros(1, 0, dtype=torch.int64)


def commit_steps(probabilities: list[float], tokens: list[int] | None = None, **config) -> list[int]:
    tokens = tokens or list(range(2, 2 + len(probabilities)))
    scorer = TableScorer(table_of(probabilities, tokens))
    out = mf.generate(scorer, EMPTY, gen_length=len(tokens), **config)
    assert out.sequences[0].tolist() == tokens
    return out.trajectory.commit_step[0].tolist()


def test_trap_s1_quota_above_candidates() -> None:
    def fill(state):
        canvas = state.canvas.clone()
        canvas[:, 2:7] = 7
        return canvas if int(state.step[0]) == 0 else None

    out = mf.generate(HashScorer(), torch.tensor([[4, 5]]), gen_length=8, steps=2, token_hook=fill)
    assert out.sequences[0, :7].tolist() == [4, 5, 7, 7, 7, 7, 7]
    assert (out.sequences != MASK).all() and out.trajectory.commit_step.max() == 1


def test_trap_s2_rows_without_masks_and_empty_batches() -> None:
    ids = torch.tensor([[4, 5, 6], [4, MASK, MASK]])
    out = mf.generate(HashScorer(), ids, gen_length=0, steps=2)
    assert out.sequences[0].tolist() == [4, 5, 6] and (out.sequences != MASK).all()
    assert out.stats.row_forwards == [0, 2]
    scorer = HashScorer()
    out = mf.generate(scorer, torch.zeros(0, 3, dtype=torch.int64), gen_length=4)
    assert out.sequences.shape == (0, 7) and out.trajectory.steps == 0 and not scorer.batches
    assert mf.generate(scorer, EMPTY, gen_length=0, steps=1).sequences.shape == (1, 0)
    assert mf.generate(scorer, EMPTY, gen_length=5).sequences.shape == (1, 5)


def test_trap_s2_steps_that_reveal_nothing_run_no_forward() -> None:
    out = mf.generate(HashScorer(), EMPTY, gen_length=3, steps=8)
    assert out.stats.forwards == 3 and out.trajectory.steps == 3
    out = mf.generate(HashScorer(), EMPTY, gen_length=32, steps=32, schedule="cosine")
    assert out.stats.forwards < 32 and out.trajectory.steps == 32


@pytest.mark.parametrize(
    ("threshold", "want"),
    [(1.0, [0, 1, 2]), (1.5, [0, 1, 2]), (0.0, [0, 0, 0]), (-1.0, [0, 0, 0]), (0.5, [0, 0, 1]), (0.3, [0, 0, 0])],
)
def test_trap_s4_threshold_commits_at_least_one(threshold: float, want: list[int]) -> None:
    assert commit_steps([0.9, 0.6, 0.4], select="threshold", threshold=threshold) == want


def test_trap_s4_quota_threshold_is_strict_and_falls_back_to_the_quota() -> None:
    probabilities = [0.97, 0.96, 0.4, 0.3]
    assert commit_steps(probabilities, select="quota_threshold", threshold=0.95, steps=4) == [0, 0, 1, 2]
    assert commit_steps(probabilities, select="quota_threshold", threshold=0.95, steps=1) == [0, 0, 0, 0]


def test_trap_s5_factor_does_not_commit_the_last_rejected_rank() -> None:
    assert commit_steps([0.9, 0.1], select="factor", factor=1.0) == [0, 1]
    assert commit_steps([0.9, 0.7, 0.1], select="factor", factor=1.0) == [0, 0, 1]


def test_trap_s6_entropy_bound_is_exclusive() -> None:
    probabilities = [0.95, 0.9, 0.85, 0.3]
    others = VOCAB - 2
    entropy = [-p * math.log(p) - (1 - p) * math.log((1 - p) / others) for p in probabilities]
    rule = {"select": "entropy_bound", "confidence": "neg_entropy"}
    bound = sum(entropy[:2]) + 1e-4
    assert commit_steps(probabilities, entropy_bound=bound, **rule)[:3] == [0, 0, 0]
    assert commit_steps(probabilities, entropy_bound=bound - 2e-4, **rule)[:3] == [0, 0, 1]
    assert commit_steps(probabilities, entropy_bound=0, **rule) == [0, 1, 2, 3]


def test_trap_s7_both_log_probs_are_recorded() -> None:
    out = mf.generate(HashScorer(), EMPTY, gen_length=6, steps=6, temperature=0.5, seed=1)
    assert (out.trajectory.commit_logp_T != out.trajectory.commit_logp).all()
    tempered = mf.generate(HashScorer(), EMPTY, gen_length=6, temperature=0.5, confidence_from="tempered", seed=1)
    assert torch.equal(tempered.trajectory.commit_confidence, tempered.trajectory.commit_logp_T)
    assert torch.equal(out.trajectory.commit_confidence, out.trajectory.commit_logp)
    greedy = mf.generate(HashScorer(), EMPTY, gen_length=6, steps=6).trajectory
    assert torch.equal(greedy.commit_logp, greedy.commit_logp_T)


def test_trap_s8_eos_with_gamma_zero_ranks_last_and_is_still_committed() -> None:
    tokens = [EOS, 5, EOS, 6]
    probabilities = [0.99, 0.2, 0.98, 0.1]
    late = mf.EOSER(g_min=0.0, g_max=0.0)
    assert commit_steps(probabilities, tokens, steps=4, eoser=late) == [2, 0, 3, 1]
    assert commit_steps(probabilities, tokens, steps=4) == [0, 2, 1, 3]
    assert commit_steps([0.9, 0.8], [EOS, EOS], steps=2, eoser=late) == [0, 1]
    # A threshold compares the discounted confidence.
    assert commit_steps([0.9, 0.8], [EOS, 5], steps=2, eoser=late, select="threshold", threshold=0.7) == [1, 0]


@pytest.mark.parametrize("running", ["last", "max"])
def test_remasking_ranks_by_the_discounted_confidence(running: str) -> None:
    tokens, probabilities = [EOS, 5, 6, EOS], [0.9, 0.8, 0.7, 0.6]
    rcr = mf.RCR(running=running)
    assert commit_steps(probabilities, tokens, steps=4, remasking=rcr) == [0, 1, 2, 3]
    late = mf.EOSER(g_min=0.0, g_max=0.0)
    assert commit_steps(probabilities, tokens, steps=4, remasking=rcr, eoser=late) == [2, 0, 1, 3]


def test_trap_s8_step_index_of_gamma() -> None:
    # Block index: each of two blocks of four restarts at g_min; global: the second block starts at 4/7.
    tokens, probabilities = [EOS, 5] * 4, [0.8, 0.5] * 4
    common = {"steps": 8, "block_length": 4}
    assert commit_steps(probabilities, tokens, eoser=mf.EOSER(g_min=0.4), **common)[4:] == [4, 6, 5, 7]
    block = mf.EOSER(g_min=0.4, eos_index="block")
    assert commit_steps(probabilities, tokens, eoser=block, **common)[4:] == [6, 4, 7, 5]
    assert commit_steps([0.8, 0.5], [EOS, 5], steps=1, eoser=mf.EOSER(g_min=0.0)) == [0, 0]
    # With rules that decide from the scores, steps counts all blocks too: the second of two steps is at g_max.
    threshold = {"select": "threshold", "threshold": 0.7, "steps": 2, "block_length": 2}
    assert commit_steps([0.9, 0.9, 0.8, 0.8], [5, 6, EOS, EOS], eoser=mf.EOSER(), **threshold) == [0, 0, 1, 1]


@pytest.mark.parametrize("scope", ["block", "canvas"])
def test_trap_s10_remasking_invariants(scope: str) -> None:
    masks = []
    config = mf.DecodeConfig(
        gen_length=12,
        block_length=6,
        steps=8,
        schedule="cosine",
        remasking=mf.RCR(scope=scope),
        streamer=lambda state: masks.append(state.masked.sum(1).tolist()),
    )
    ids = torch.tensor([[MASK, 4, 5], [3, 4, 5]])
    out = mf.generate(HashScorer(), ids, config=config)
    for b, first in enumerate((7, 6)):
        left = [
            *(sum(schedule_table("cosine", first, 4)[first].tolist()[i + 1 :]) + 6 for i in range(4)),
            *(sum(schedule_table("cosine", 6, 4)[6].tolist()[i + 1 :]) for i in range(4)),
        ]
        assert [step[b] for step in masks] == left
    assert out.sequences[0, 1:3].tolist() == [4, 5] and out.sequences[1, :3].tolist() == [3, 4, 5]
    assert (out.sequences != MASK).all()
    assert (out.trajectory.commit_step[out.trajectory.eligible] >= 0).all()


def test_trap_s10_a_saturated_prompt_is_never_masked_again() -> None:
    table = table_of([0.5] * 3 + [1 - 1e-15] * 5, [2] * 8)
    out = mf.generate(TableScorer(table), torch.tensor([[9, 8, 7]]), gen_length=5, steps=5, remasking=mf.RCR())
    assert out.sequences[0].tolist() == [9, 8, 7, 2, 2, 2, 2, 2]


def test_trap_s11_alg_temp_draws_positions_by_weight() -> None:
    rows, temperature = 4000, 0.4
    probabilities = [0.9, 0.6, 0.3, 0.1]
    scorer = TableScorer(table_of(probabilities, [2, 3, 4, 5]))
    config = mf.DecodeConfig(gen_length=4, steps=4, alg_temp=temperature, seed=5)
    steps = mf.generate(scorer, EMPTY.expand(rows, 0), config=config).trajectory.commit_step
    assert torch.equal(steps.sort(1).values, torch.arange(4, dtype=torch.int16).expand(rows, 4))
    first = Counter(steps.argmin(1).tolist())
    weights = [math.exp(p / temperature) for p in probabilities]
    expected = [rows * w / sum(weights) for w in weights]
    assert chisquare([first[i] for i in range(4)], expected).pvalue > 1e-3
    pairs = Counter(map(tuple, steps.argsort(1)[:, :2].tolist()))
    want = {
        (a, b): weights[a] / sum(weights) * weights[b] / (sum(weights) - weights[a])
        for a in range(4)
        for b in range(4)
        if a != b
    }
    assert chisquare([pairs[k] for k in want], [rows * v for v in want.values()]).pvalue > 1e-3


def test_trap_s12_random_order_is_uniform_and_keyed_by_row_position_and_step() -> None:
    scorer = TableScorer(table_of([0.5] * 3, [2, 3, 4]))
    config = mf.DecodeConfig(gen_length=3, steps=3, confidence="random", seed=7)
    steps = mf.generate(scorer, EMPTY.expand(3000, 0), config=config).trajectory.commit_step
    orders = Counter(map(tuple, steps.tolist()))
    assert len(orders) == 6 and chisquare(list(orders.values())).pvalue > 1e-3
    alone = mf.generate(scorer, EMPTY, config=config, row_ids=[1234]).trajectory.commit_step
    assert torch.equal(alone[0], steps[1234])


def test_origin_reveals_independently_and_everything_at_the_end() -> None:
    length, rows = 20, 400
    scorer = TableScorer(table_of([0.5] * length, [2] * length))
    config = mf.DecodeConfig.preset("dream-origin", gen_length=length, steps=4, seed=3)
    steps = mf.generate(scorer, EMPTY.expand(rows, 0), config=config).trajectory.commit_step
    times = torch.linspace(1, 1e-3, 5)
    shares = torch.tensor([(steps == i).double().mean() for i in range(4)])
    assert torch.allclose(shares, torch.tensor([0.24975] * 3 + [float(times[3])], dtype=shares.dtype), atol=0.02)


def test_trap_m1_a_model_that_predicts_the_mask_still_fills_the_canvas() -> None:
    table = torch.zeros(6, VOCAB)
    table[:, MASK] = 50.0
    table[:, 4] = 1.0
    for rule in ({"steps": 3}, {"select": "threshold", "threshold": 0.99}):
        out = mf.generate(TableScorer(table), EMPTY, gen_length=6, **rule)
        assert out.sequences.tolist() == [[4] * 6]


def test_trap_m5_step_zero_is_not_never() -> None:
    out = mf.generate(HashScorer(), torch.tensor([[4, 5]]), gen_length=3, steps=3)
    assert sorted(out.trajectory.commit_step[0].tolist()) == [-1, -1, 0, 1, 2]


def test_positions_tie_to_the_lowest() -> None:
    assert commit_steps([0.5] * 5, steps=5) == [0, 1, 2, 3, 4]
