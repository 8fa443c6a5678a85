"""MDPO's advantages of denoising steps against plain Python in float64."""

import math

import pytest
import torch
from advantage_oracle import mean, oracle_group, random_rows
from near import assert_near

from mdlm_fast.rl import objectives

NAN = math.nan
SEEDS = range(5)


def oracle_steps(rewards: list[float]) -> list[float]:
    """MDPO, research notes: the + 1 of the released code included."""
    last = len(rewards) - 1
    return [
        rewards[t] - (rewards[t - 1] if t else 0.0) + 1 + mean(rewards[t + 1 :] if t < last else [rewards[last]])
        for t in range(len(rewards))
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_step_advantages_are_mdpos(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(6, 13, dtype=torch.float64, generator=generator)
    found = objectives.step_advantages(rewards)
    assert_near(found + 1, [oracle_steps(row) for row in rewards.tolist()])
    # The paper's form, u steps before the end: r_u - r_{u+1} + mean of the rewards of the steps after it.
    for row, advantage in zip(rewards.tolist(), found.tolist(), strict=True):
        r, a = row[::-1] + [0.0], advantage[::-1]
        for u in range(13):
            later = sum(r[:u]) / u if u else r[0]
            assert a[u] == pytest.approx(r[u] - r[u + 1] + later, abs=1e-12)
    groups = torch.tensor([4, 9, 4, 4, 9, 9])
    with_one = objectives.normalize_steps(found + 1, groups)
    assert_near(objectives.normalize_steps(found, groups), with_one, 1e-10)


def test_step_advantages_of_one_step_and_of_rows_that_end_earlier() -> None:
    assert objectives.step_advantages(torch.tensor([[2.0]])).tolist() == [[4.0]]
    found = objectives.step_advantages(torch.tensor([[1.0, 3.0, 5.0, 7.0], [1.0, 3.0, NAN, NAN]], dtype=torch.float64))
    assert found[0].tolist() == [1 + 5, 2 + 6, 2 + 7, 2 + 7]
    assert_near(found[1], [1 + 3, 2 + 3, NAN, NAN])
    hole = objectives.step_advantages(torch.tensor([[1.0, NAN, 5.0, 8.0]], dtype=torch.float64))
    assert_near(hole, [[1 + 6.5, NAN, NAN, 3 + 8]])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("eps", [1e-4, 0.0])
def test_normalize_steps_is_a_z_score_of_every_step(seed: int, eps: float) -> None:
    rewards, groups = random_rows(seed)
    advantages = torch.stack([rewards, rewards.roll(2), rewards * 0, rewards.abs()], 1)
    found = objectives.normalize_steps(advantages, groups, eps)
    for step in range(4):
        wanted = oracle_group(advantages[:, step].tolist(), groups.tolist(), "group", True, eps)
        assert_near(found[:, step], wanted)
    assert (found[:, 2] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_completions_with_the_same_rewards_have_no_advantage_at_any_step(dtype: torch.dtype) -> None:
    rewards = torch.rand(65, generator=torch.Generator().manual_seed(0)).to(dtype).expand(7, 65).contiguous()
    advantages = objectives.step_advantages(rewards)
    assert (objectives.normalize_steps(advantages, torch.zeros(7, dtype=torch.int64)) == 0).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", [1, 3, 40, 99])
def test_rank_steps_takes_the_largest_sums_of_the_group(seed: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = torch.tensor([3, -8, 3, 3, -8, 100])
    # Small integers: sums are exact, and ties are many.
    advantages = torch.randint(-2, 3, (6, 40), generator=generator).float()
    advantages[2, 4] = NAN
    found = objectives.rank_steps(advantages, groups, k)
    assert found.shape == (6, min(k, 40)) and found.dtype == torch.int64
    for row in range(6):
        members = [r for r in range(6) if groups[r] == groups[row]]
        sums = [sum(abs(v) for r in members if not math.isnan(v := advantages[r, s].item())) for s in range(40)]
        assert found[row].tolist() == sorted(range(40), key=lambda step: (-sums[step], step))[:k]
