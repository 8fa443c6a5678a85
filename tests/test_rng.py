"""Philox and the streams built on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import philox_uniform
from scipy import stats

from mdlm_fast import rng

ALL = 0xFFFFFFFF
#: Known answers published with Random123 for philox4x32-10: counter, key, output.
KNOWN_ANSWERS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)
INT64 = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize("counter,key,output", KNOWN_ANSWERS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], output: tuple[int, ...]) -> None:
    assert rng.philox4x32(counter, key) == output
    words = rng.philox4x32([torch.tensor([x]) for x in counter], [torch.tensor([x]) for x in key])
    assert tuple(int(word) for word in words) == output


@settings(max_examples=60, deadline=None)
@given(INT64, st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.sampled_from(sorted(rng.STREAMS)))
def test_uniform_is_the_documented_number(seed: int, position: int, step: int, stream: str) -> None:
    u = rng.uniform(torch.tensor([seed]), torch.tensor([position], dtype=torch.int32), step, stream)
    assert u.dtype == torch.float64
    assert float(u) == philox_uniform(seed, position, step, rng.STREAMS[stream])
    assert float(u) == float(rng.uniform(torch.tensor([seed]), position, torch.tensor([step]), rng.STREAMS[stream]))


def test_uniform_is_uniform_and_open() -> None:
    u = rng.uniform(torch.arange(50)[:, None], torch.arange(400), 3, "token").flatten().numpy()
    assert u.min() > 0 and u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-4
    largest = np.float64((2**52 - 1 + 0.5) * 2.0**-52)
    assert largest < 1.0  # with 53 bits this would round to 1


def test_streams_positions_steps_and_seeds_are_independent() -> None:
    seeds, positions = torch.arange(20), torch.arange(500)[:, None]
    draws = [rng.uniform(seeds, positions, step, stream).flatten() for step in (0, 1) for stream in rng.STREAMS]
    correlation = np.corrcoef(torch.stack(draws).numpy())
    assert np.abs(correlation - np.eye(len(draws))).max() < 0.05
    assert torch.stack(draws).unique().numel() == len(draws) * 10_000


def test_unknown_stream() -> None:
    with pytest.raises(ValueError, match="stream='tokens'"):
        rng.uniform(torch.tensor([1]), 0, 0, "tokens")


@settings(max_examples=60, deadline=None)
@given(INT64, INT64)
def test_derive_seed_is_the_same_for_ints_and_tensors(seed: int, row_key: int) -> None:
    expected = rng.derive_seed(seed, row_key)
    assert -(2**63) <= expected < 2**63
    r0, r1, _, _ = rng.philox4x32((row_key & ALL, (row_key >> 32) & ALL, 0, ALL), (seed & ALL, (seed >> 32) & ALL))
    assert expected & (2**64 - 1) == r0 | (r1 << 32)
    assert int(rng.derive_seed(seed, torch.tensor(row_key))) == expected
    assert rng.derive_seed(torch.tensor([seed]), row_key).tolist() == [expected]
    assert rng.derive_seed(torch.tensor([seed]), torch.tensor([row_key, 5])).tolist()[0] == expected


def test_derived_seeds_do_not_collide() -> None:
    assert rng.derive_seed(3, torch.arange(100_000)).unique().numel() == 100_000


def test_unsigned_seeds_wrap() -> None:
    assert rng.derive_seed(2**64 - 1, 4) == rng.derive_seed(-1, 4)
    assert rng.derive_seed(2**64 - 1, torch.tensor([4])).tolist() == [rng.derive_seed(-1, 4)]


def test_trap_s12_random_confidence_depends_on_row_position_and_step_only() -> None:
    seeds = torch.tensor([4, 4, 9, 4])
    positions = torch.tensor([0, 1, 0, 0], dtype=torch.int32)
    confidence = rng.random_confidence(seeds, positions, 2)
    assert confidence.dtype == torch.float32
    assert confidence[0] == confidence[3] and confidence.unique().numel() == 3
    shuffled = torch.tensor([2, 0, 3, 1])
    assert torch.equal(rng.random_confidence(seeds[shuffled], positions[shuffled], 2), confidence[shuffled])
    assert (rng.random_confidence(seeds, positions, 3) != confidence).all()


def test_trap_s11_position_keys_sample_without_replacement_exactly() -> None:
    """The order of the largest keys follows successive draws with weights exp(confidence / alg_temp)."""
    confidence = torch.tensor([0.0, -1.0, -0.2, -2.0])
    alg_temp, count = 0.7, 40_000
    keys = rng.position_keys(confidence, torch.arange(count)[:, None], torch.arange(4), 1, alg_temp)
    assert keys.dtype == torch.float32
    order = keys.argsort(1, descending=True)[:, :2]
    weight = np.exp(confidence.double().numpy() / alg_temp)
    weight /= weight.sum()
    expected = np.array(
        [[0 if i == j else weight[i] * weight[j] / (1 - weight[i]) for j in range(4)] for i in range(4)]
    ).flatten()
    observed = np.bincount((order[:, 0] * 4 + order[:, 1]).numpy(), minlength=16)
    possible = expected > 0
    assert observed[~possible].sum() == 0
    assert stats.chisquare(observed[possible], count * expected[possible]).pvalue > 1e-4


def test_position_keys_leave_minus_infinity_last() -> None:
    keys = rng.position_keys(torch.tensor([-np.inf, 0.0]), torch.tensor([1, 1]), torch.tensor([0, 1]), 0, 1.0)
    assert keys[0] == -np.inf and torch.isfinite(keys[1])
