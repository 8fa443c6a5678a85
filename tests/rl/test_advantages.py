"""Advantages against plain Python in float64, and the properties their docstrings promise."""

import math
from collections.abc import Callable

import pytest
import torch
from advantage_oracle import deviation, mean, oracle_group, random_rows, scored_of
from hypothesis import given, settings
from hypothesis import strategies as st
from near import assert_near
from torch import Tensor

from mdlm_fast.rl import objectives

NAN = math.nan
SCALES = ["none", "group", "batch"]
AGGREGATIONS = ["sum_then_normalize", "normalize_then_sum"]
CENTERINGS = ["uniform", "negative", "none"]
SEEDS = range(5)


def oracle_leave_one_out(rewards: list[float], groups: list[int]) -> list[float]:
    found = []
    for row, (reward, group) in enumerate(zip(rewards, groups, strict=True)):
        others = [
            r
            for at, (r, g) in enumerate(zip(rewards, groups, strict=True))
            if at != row and g == group and not math.isnan(r)
        ]
        found.append(0.0 if math.isnan(reward) or not others else reward - mean(others))
    return found


# Advantages of completions


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("eps", [1e-4, 0.0])
def test_group_advantages(seed: int, scale: str, unbiased: bool, eps: float) -> None:
    rewards, groups = random_rows(seed)
    found = objectives.group_advantages(rewards, groups, scale=scale, unbiased=unbiased, eps=eps)
    assert_near(found, oracle_group(rewards.tolist(), groups.tolist(), scale, unbiased, eps))
    assert (found[rewards.isnan()] == 0).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_leave_one_out_advantages(seed: int) -> None:
    rewards, groups = random_rows(seed)
    found = objectives.leave_one_out_advantages(rewards, groups)
    assert_near(found, oracle_leave_one_out(rewards.tolist(), groups.tolist()))


def test_a_group_of_one_has_no_advantage_and_no_leave_one_out() -> None:
    rewards, groups = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([7, 5, 5])
    for scale in SCALES:
        assert objectives.group_advantages(rewards, groups, scale=scale, eps=0)[0] == 0
    with pytest.raises(ValueError, match="group 7 has one row"):
        objectives.leave_one_out_advantages(rewards, groups)
    left = objectives.leave_one_out_advantages(torch.tensor([3.0, NAN, 2.0, 1.0]), torch.tensor([7, 7, 5, 5]))
    assert left.tolist() == [0.0, 0.0, 1.0, -1.0]


rewards_of_rows = st.lists(
    st.tuples(st.integers(0, 3), st.one_of(st.just(NAN), st.floats(-100, 100, width=32))), min_size=1, max_size=20
)


def every_advantage(rewards: Tensor, groups: Tensor) -> dict[str, Tensor]:
    """All functions that take one reward a row; leave-one-out where it is defined."""
    found = {scale: objectives.group_advantages(rewards, groups, scale=scale) for scale in SCALES}
    for centering in CENTERINGS:
        found[f"dmpo {centering}"] = objectives.distribution_matching_advantages(
            rewards, torch.zeros_like(rewards), groups, 20.0, centering
        )
    if all((groups == group).sum() > 1 for group in groups):
        found["leave one out"] = objectives.leave_one_out_advantages(rewards, groups)
    return found


@settings(max_examples=100, deadline=None)
@given(rewards_of_rows, st.randoms(use_true_random=False), st.integers(-50, 50), st.integers(-(2**62), 2**62))
def test_advantages_follow_the_rows_and_ignore_a_shift_of_the_rewards_and_the_names_of_groups(
    rows: list[tuple[int, float]], random, shift: int, rename: int
) -> None:
    groups, rewards = torch.tensor([g for g, _ in rows]), torch.tensor([r for _, r in rows], dtype=torch.float64)
    order = list(range(len(rows)))
    random.shuffle(order)
    wanted = every_advantage(rewards, groups)
    changed = every_advantage(rewards[order] + shift, (groups * 12345 + rename)[order])
    assert wanted.keys() == changed.keys()
    for name, advantage in wanted.items():
        # A spread of nearly 0 next to eps magnifies what the shift rounds away (1e-14) by at most 1 / eps.
        torch.testing.assert_close(changed[name], advantage[order], atol=1e-9, rtol=1e-7)
        assert not advantage.isnan().any()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6, width=32), st.integers(1, 9)), min_size=1, max_size=5),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_equal_rewards_give_exactly_nothing(sizes: list[tuple[float, int]], dtype: torch.dtype) -> None:
    rewards = torch.tensor([r for r, n in sizes for _ in range(n + 1)], dtype=dtype) / 3
    groups = torch.tensor([at for at, (_, n) in enumerate(sizes) for _ in range(n + 1)])
    rewards = torch.cat([rewards, torch.full((1,), NAN, dtype=dtype)])
    groups = torch.cat([groups, groups[:1]])
    for name, advantage in every_advantage(rewards, groups).items():
        assert advantage.dtype == dtype
        if name == "dmpo none":
            assert advantage[:-1].min() > 0 and advantage[-1] == 0
        else:
            assert (advantage == 0).all(), name
    for scale in SCALES:
        assert (objectives.group_advantages(rewards, groups, scale=scale, eps=0) == 0).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_statistics_are_those_of_each_group(seed: int) -> None:
    rewards, groups = random_rows(seed, nan=False)
    scaled = objectives.group_advantages(rewards, groups, scale="group", eps=0)
    for group in groups.unique():
        of_group = scaled[groups == group]
        assert_near(of_group.mean(), 0.0)
        assert_near(of_group.std(), 1.0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scale", SCALES)
def test_float32_is_near_float64(seed: int, scale: str) -> None:
    rewards, groups = random_rows(seed)
    near = objectives.group_advantages(rewards.float() + 1000, groups, scale=scale)
    wanted = objectives.group_advantages((rewards.float() + 1000).double(), groups, scale=scale)
    # Rewards are taken relative to the smallest before any sum, so the offset costs no digits.
    torch.testing.assert_close(near.double(), wanted, atol=2e-6, rtol=2e-6)


def test_advantages_carry_no_gradient() -> None:
    rewards = torch.randn(6, dtype=torch.float64, requires_grad=True)
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    assert not any(advantage.requires_grad for advantage in every_advantage(rewards, groups).values())


# Several reward functions


def oracle_combined(rewards: list[list[float]], weights: list[float], groups: list[int], aggregation: str) -> list:
    columns = [list(column) for column in zip(*rewards, strict=True)]
    if aggregation == "normalize_then_sum":
        columns = [
            [NAN if math.isnan(r) else a for r, a in zip(c, oracle_group(c, groups, "group", True, 1e-4), strict=True)]
            for c in columns
        ]
    found = []
    for row in zip(*columns, strict=True):
        terms = [weight * value for weight, value in zip(weights, row, strict=True) if not math.isnan(value)]
        found.append(math.fsum(terms) if terms else NAN)
    return found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_combine_rewards(seed: int, aggregation: str) -> None:
    columns = [random_rows(seed * 10 + f)[0] for f in range(3)]
    groups = random_rows(seed)[1]
    rows = min(len(groups), *map(len, columns))
    rewards, groups = torch.stack([c[:rows] for c in columns], 1), groups[:rows]
    rewards[0] = NAN
    weights = torch.tensor([1.0, -0.5, 0.25])
    found = objectives.combine_rewards(rewards, weights, groups, aggregation)
    assert_near(found, oracle_combined(rewards.tolist(), weights.tolist(), groups.tolist(), aggregation))
    assert found[0].isnan()


@pytest.mark.parametrize("seed", SEEDS)
def test_normalize_then_sum_ends_in_a_z_score_over_the_batch(seed: int) -> None:
    """TRL's last step, for any scale_rewards, is what scale="batch" does."""
    rewards, groups = random_rows(seed)
    both = torch.stack([rewards, rewards.roll(1).square()], 1)
    combined = objectives.combine_rewards(both, torch.tensor([1.0, 2.0]), groups, "normalize_then_sum")
    values = combined.tolist()
    scored = [v for v in values if not math.isnan(v)]
    wanted = [0.0 if math.isnan(v) else (v - mean(scored)) / (deviation(scored) + 1e-4) for v in values]
    assert_near(objectives.group_advantages(combined, groups, scale="batch"), wanted)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("functions", [1, 3, 8, 9])
def test_equal_rows_of_rewards_combine_to_equal_rewards(aggregation: str, functions: int) -> None:
    generator = torch.Generator().manual_seed(functions)
    rewards = torch.randn(functions, generator=generator).expand(37, functions).contiguous()
    groups = torch.zeros(37, dtype=torch.int64)
    combined = objectives.combine_rewards(rewards, torch.randn(functions, generator=generator), groups, aggregation)
    assert (combined == combined[0]).all()


# Distribution matching


def oracle_dmpo(rewards: list, log_ratio: list, groups: list, alpha: float, centering: str) -> list[float]:
    def weight(row: int, sign: int) -> float:
        energy = {
            at: sign * r / alpha + log_ratio[at]
            for at, r in enumerate(rewards)
            if groups[at] == groups[row] and not math.isnan(r)
        }
        return 1 / math.fsum(math.exp(e - energy[row]) for e in energy.values())

    found = []
    for row, reward in enumerate(rewards):
        if math.isnan(reward):
            found.append(0.0)
            continue
        members = scored_of(groups[row], rewards, groups)
        baseline = {"uniform": 1 / len(members), "none": 0.0, "negative": weight(row, -1)}[centering]
        found.append(weight(row, 1) - baseline)
    return found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("centering", CENTERINGS)
@pytest.mark.parametrize("alpha", [0.3, 5.0])
def test_distribution_matching_advantages(seed: int, centering: str, alpha: float) -> None:
    rewards, groups = random_rows(seed)
    log_ratio = torch.randn(len(rewards), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 10
    found = objectives.distribution_matching_advantages(rewards, log_ratio, groups, alpha, centering)
    assert_near(found, oracle_dmpo(rewards.tolist(), log_ratio.tolist(), groups.tolist(), alpha, centering))
    for group in groups.unique():
        some = (~rewards[groups == group].isnan()).any()
        assert_near(found[groups == group].sum(), float(centering == "none" and some))


def test_dmpo_weights_stay_finite_for_log_ratios_of_whole_sequences() -> None:
    rewards, groups = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0, 0, 1, 1])
    log_ratio = torch.tensor([-9000.0, 9000.0, -9000.0, -9000.0])
    found = objectives.distribution_matching_advantages(rewards, log_ratio, groups, 1.0, "uniform")
    wanted = 1 / (1 + math.exp(-1)) - 0.5
    assert_near(found, [-0.5, 0.5, wanted, -wanted], 1e-6)
    equal = objectives.distribution_matching_advantages(rewards * 0 + 0.1, log_ratio, groups, 0.04, "negative")
    assert (equal == 0).all()


# Refusals

ROWS, GROUPS = torch.zeros(4), torch.zeros(4, dtype=torch.int64)
TABLE = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: objectives.group_advantages(ROWS, GROUPS[:3]), r"groups must have shape \[4\].*got \[3\]"),
        (lambda: objectives.group_advantages(TABLE, GROUPS), r"rewards must have shape \[N\], got \[4, 3\]"),
        (lambda: objectives.group_advantages(ROWS, GROUPS, scale="std"), "scale='std' is unknown.*'batch'"),
        (lambda: objectives.group_advantages(ROWS, GROUPS, eps=-1), "eps=-1 must be >= 0"),
        (lambda: objectives.combine_rewards(TABLE, torch.ones(2), GROUPS, AGGREGATIONS[0]), r"weights.*\[3\].*\[2\]"),
        (lambda: objectives.combine_rewards(TABLE, torch.ones(3), GROUPS, "sum"), "aggregation='sum' is unknown"),
        (lambda: objectives.leave_one_out_advantages(ROWS, torch.arange(4)), "group 0 has one row"),
        (lambda: objectives.step_advantages(ROWS), r"step_rewards must have shape \[B, S\].*got \[4\]"),
        (lambda: objectives.normalize_steps(TABLE, GROUPS[:3]), r"groups must have shape \[4\]"),
        (lambda: objectives.normalize_steps(TABLE, GROUPS, NAN), "eps=nan must be >= 0"),
        (lambda: objectives.rank_steps(TABLE, GROUPS, 0), "k=0 must be at least 1"),
        (
            lambda: objectives.distribution_matching_advantages(ROWS, ROWS, GROUPS, 0.0, "none"),
            "alpha=0.0 must be finite and > 0",
        ),
        (
            lambda: objectives.distribution_matching_advantages(ROWS, ROWS, GROUPS, 1.0, "mean"),
            "centering='mean' is unknown",
        ),
        (
            lambda: objectives.distribution_matching_advantages(ROWS, ROWS[:3], GROUPS, 1.0, "none"),
            "one id for each row of log_ratio",
        ),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match=r"rewards must be float32 or float64, got torch\.int64"):
        objectives.group_advantages(GROUPS, GROUPS)
    with pytest.raises(TypeError, match=r"groups must be int64, got torch\.float32"):
        objectives.group_advantages(ROWS, ROWS)


def test_empty_batches_are_fine() -> None:
    none, groups = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert all(advantage.shape == (0,) for advantage in every_advantage(none, groups).values())
    assert objectives.rank_steps(torch.zeros(0, 3), groups, 2).shape == (0, 2)
