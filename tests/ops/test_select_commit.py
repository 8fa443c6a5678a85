"""Which positions a step takes, and what it writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from canvas import MASK, Canvas, check_step, expected_positions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import philox_uniform

from mdlm_fast import ops

SETTINGS = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.mark.ops("select_commit_")
@SETTINGS
@given(
    rule=st.sampled_from(("quota", "threshold", "factor", "entropy_bound", "quota_threshold")),
    sequences=st.integers(0, 4),
    length=st.integers(0, 12),
    seed=st.integers(0, 10**6),
    quota=st.integers(0, 15),
    threshold=st.sampled_from((-2.0, -0.5, -0.25, 0.0, 0.1, 0.3, 1.0, 5.0)),
)
def test_rules(backend: str, rule: str, sequences: int, length: int, seed: int, quota: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    masked = torch.rand(sequences, length, generator=generator) < 0.6
    state = Canvas(masked, seed)
    quotas = (quota + torch.arange(sequences)).to(torch.int32)
    thresholds = torch.full((sequences,), threshold)
    steps = torch.arange(sequences, dtype=torch.int32) + 3
    state.step(rule=rule, quota=quotas, threshold=thresholds, step=steps if sequences > 1 else 3)
    taken = {
        b: expected_positions(state, masked, rule, b, quota=quota + b, threshold=float(np.float32(threshold)))
        for b in range(sequences)
    }
    check_step(masked, state, taken, [3 + b for b in range(sequences)])


@pytest.mark.ops("select_commit_")
def test_trap_s1_quota_above_candidates(backend: str) -> None:
    """k above the number of candidates takes them all and no committed or foreign position."""
    masked = torch.zeros(2, 9, dtype=torch.bool)
    masked[0, [2, 5]] = True
    masked[1, 7] = True
    state = Canvas(masked, 1)
    untouched = state.canvas.clone()
    state.step(quota=torch.tensor([9, 2**31 - 1], dtype=torch.int32))
    check_step(masked, state, {0: {2, 5}, 1: {7}}, [0, 0])
    assert torch.equal(state.canvas[~masked], untouched[~masked])


@pytest.mark.ops("select_commit_")
def test_trap_s2_no_quota_no_masks_no_rows(backend: str) -> None:
    masked = torch.tensor([[True, True, False], [False, False, False], [True, False, True]])
    state = Canvas(masked, 2)
    state.step(quota=torch.tensor([0, 3, -4], dtype=torch.int32))
    check_step(masked, state, {0: set(), 1: set(), 2: set()}, [0, 0, 0])
    empty = Canvas(torch.zeros(2, 3, dtype=torch.bool), 2)
    empty.step(quota=torch.tensor([1, 1], dtype=torch.int32))
    assert empty.buffers["done"].tolist() == [True, True] and empty.buffers["num_next_rows"].tolist() == [0]


@pytest.mark.ops("select_commit_")
def test_a_committed_position_is_never_a_candidate(backend: str) -> None:
    """A stale row list names positions that are no longer masked, and bad rows carry a negative token."""
    masked = torch.tensor([[True, True, True, True]])
    state = Canvas(masked, 3)
    state.masked[0, 1] = False
    state.canvas[0, 1] = 42
    state.token[state.rows == 2] = -2
    state.step(quota=torch.tensor([4], dtype=torch.int32))
    assert state.canvas[0, 1] == 42 and state.canvas[0, 2] == MASK
    assert state.masked.tolist() == [[False, False, True, False]]
    assert state.buffers["next_rows"][0] == 2 and state.buffers["num_next_rows"].tolist() == [1]


@pytest.mark.ops("select_commit_")
def test_trap_s4_thresholds(backend: str) -> None:
    """>= for `threshold`, at least one; > for `quota_threshold`, at least the quota."""
    masked = torch.ones(1, 4, dtype=torch.bool)
    for rule, threshold, quota, expected in (
        ("threshold", -0.5, 0, {0, 1}),
        ("threshold", 0.5, 0, {1}),
        ("threshold", -np.inf, 0, {0, 1, 2, 3}),
        ("threshold", np.inf, 0, {1}),
        ("quota_threshold", -0.5, 1, {1}),
        ("quota_threshold", -0.6, 1, {0, 1}),
        ("quota_threshold", -0.6, 3, {0, 1, 2}),
        ("quota_threshold", 1.0, 0, set()),
    ):
        state = Canvas(masked, 4)
        state.confidence = torch.empty_like(state.confidence)
        for position, value in enumerate((-0.5, -0.25, -1.0, -2.0)):
            state.confidence[state.rows == position] = value
        state.step(rule=rule, threshold=torch.tensor([threshold]), quota=torch.tensor([quota], dtype=torch.int32))
        check_step(masked, state, {0: expected}, [0])


@pytest.mark.ops("select_commit_")
def test_trap_s5_factor_stops_at_the_first_rejection(backend: str) -> None:
    """p = .9 .7 .74 .1 with f = 1: bounds .5 .67 .75 .8, so rank 3 (.7 < .75) stops what a count would let through."""
    p = torch.tensor([0.9, 0.7, 0.74, 0.1])
    for factor, expected in ((1.0, {0, 2}), (1.3, {0, 1, 2}), (0.0, {0}), (100.0, {0, 1, 2, 3})):
        masked = torch.ones(1, 4, dtype=torch.bool)
        state = Canvas(masked, 5)
        for position in range(4):
            state.confidence[state.rows == position] = p[position].log()
        state.step(rule="factor", threshold=torch.tensor([factor]))
        check_step(masked, state, {0: expected}, [0])


@pytest.mark.ops("select_commit_")
def test_trap_s6_entropy_bound_leaves_out_the_last_term(backend: str) -> None:
    """Entropies .1 .2 .3 with bound .3: the sums before are 0, .1, .3, so three are taken; inclusive sums take two."""
    masked = torch.ones(1, 4, dtype=torch.bool)
    for bound, expected in ((0.3125, {0, 1, 2}), (0.1, {1}), (-1.0, {1}), (9.0, {0, 1, 2, 3})):
        state = Canvas(masked, 6)
        for position, value in enumerate((0.1875, 0.125, 0.25, 2.0)):
            state.entropy[state.rows == position] = value
        state.step(rule="entropy_bound", threshold=torch.tensor([bound]))
        check_step(masked, state, {0: expected}, [0])


@pytest.mark.ops("select_commit_")
@pytest.mark.parametrize("discount", ("log", "multiply"))
def test_trap_s8_discount_of_eos_tokens(backend: str, discount: str) -> None:
    """Only where the token is in the set, ranked discounted, recorded undiscounted; gamma 0 ranks last but stays in."""
    masked = torch.ones(2, 4, dtype=torch.bool)
    p = torch.tensor([0.9, 0.8, 0.5, 0.3])
    tokens = torch.tensor([7, 1, 8, 2])
    for gamma, order in ((1.0, [0, 1, 2, 3]), (0.5, [1, 0, 3, 2]), (0.0, [1, 3, 0, 2])):
        for quota in range(5):
            state = Canvas(masked, 8)
            for row in range(8):
                state.token[state.rows == row] = tokens[row % 4]
                state.confidence[state.rows == row] = p[row % 4].log() if discount == "log" else p[row % 4]
            state.step(
                quota=torch.tensor([quota, 4], dtype=torch.int32),
                discount=discount,
                gamma=torch.tensor([gamma, 0.0]),
                eos_ids=torch.tensor([8, 7]),
            )
            check_step(masked, state, {0: set(order[:quota]), 1: {0, 1, 2, 3}}, [0, 0])


@pytest.mark.ops("select_commit_")
def test_threshold_compares_the_discounted_confidence(backend: str) -> None:
    masked = torch.ones(1, 2, dtype=torch.bool)
    state = Canvas(masked, 9)
    for row, (token, value) in enumerate(((7, 0.9), (1, 0.6))):
        state.token[state.rows == row], state.confidence[state.rows == row] = token, float(np.log(value))
    state.step(
        rule="threshold",
        threshold=torch.tensor([float(np.log(0.5))]),
        discount="log",
        gamma=torch.tensor([0.5]),
        eos_ids=torch.tensor([7]),
    )
    check_step(masked, state, {0: {1}}, [0])


@pytest.mark.ops("select_commit_")
def test_origin_transfers_each_position_by_its_own_number(backend: str) -> None:
    masked = torch.rand(3, 40, generator=torch.Generator().manual_seed(3)) < 0.7
    state = Canvas(masked, 10)
    seeds = torch.tensor([5, -9, 2**62])
    probability = torch.tensor([0.3, 1.0, 0.0])
    state.step(rule="origin", threshold=probability, seeds=seeds, step=6)
    taken = {
        b: {p for p in range(40) if masked[b, p] and philox_uniform(int(seeds[b]), p, 6, 2) < float(probability[b])}
        for b in range(3)
    }
    check_step(masked, state, taken, [6] * 3)


@pytest.mark.ops("select_commit_")
def test_trap_s11_alg_temp_is_seeded_gumbel_top_k(backend: str) -> None:
    masked = torch.ones(2, 30, dtype=torch.bool)
    state = Canvas(masked, 11)
    seeds = torch.tensor([5, 6])
    position = torch.where(state.rows >= 0, state.rows % 30 + 100, -1).to(torch.int32)
    state.step(quota=torch.tensor([7, 12], dtype=torch.int32), alg_temp=0.8, seeds=seeds, row_position=position, step=2)
    taken = {}
    for b, quota in ((0, 7), (1, 12)):
        keys = {}
        for slot, row in enumerate(state.rows.tolist()):
            if row >= 0 and row // 30 == b:
                u = philox_uniform(int(seeds[b]), row % 30 + 100, 2, 2)
                keys[row % 30] = float(state.confidence[slot]) / 0.8 - np.log(-np.log(u))
        taken[b] = set(sorted(keys, key=lambda p: -keys[p])[:quota])
    check_step(masked, state, taken, [2, 2])


@pytest.mark.ops("select_commit_")
def test_trap_l3_sequences_do_not_mix(backend: str) -> None:
    """Parameters are per sequence, wherever its rows stand in the list; a batch equals its sequences one by one."""
    generator = torch.Generator().manual_seed(12)
    masked = torch.rand(5, 17, generator=generator) < 0.5
    batch = Canvas(masked, 12)
    quota = torch.tensor([1, 3, 0, 2, 9], dtype=torch.int32)
    batch.step(quota=quota)
    for b in range(5):
        alone = Canvas(masked[b : b + 1], 12)
        slots = [s for s, row in enumerate(batch.rows.tolist()) if row // 17 == b]
        alone.rows = batch.rows[slots] - 17 * b
        for name in ("token", "confidence", "entropy", "logp", "logp_T"):
            setattr(alone, name, getattr(batch, name)[slots])
        alone.buffers["next_rows"] = torch.zeros(len(slots), dtype=torch.int32)
        alone.step(quota=quota[b : b + 1])
        assert torch.equal(alone.masked[0], batch.masked[b])


@pytest.mark.ops("select_commit_")
def test_canvases_of_any_strides(backend: str) -> None:
    wide = torch.full((2, 20), MASK)
    masked = torch.zeros(2, 20, dtype=torch.bool)
    masked[:, ::2] = True
    rows = torch.tensor([1, 3, 12], dtype=torch.int32)
    ops.select_commit_(
        wide[:, ::2],
        masked[:, ::2],
        rows,
        torch.tensor([5, 6, 7]),
        torch.tensor([0.0, 1.0, 2.0]),
        quota=torch.tensor([1, 1], dtype=torch.int32),
    )
    assert wide[0, 6] == 6 and wide[1, 4] == 7 and (wide == MASK).sum() == 38
    assert not masked[0, 6] and not masked[1, 4] and masked.sum() == 18
