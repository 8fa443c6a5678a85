"""Losses, KL estimators and importance weights against plain Python in float64, and what their docstrings promise."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from near import assert_near
from torch import Tensor

import mdlm_fast.rl
from mdlm_fast.rl import objectives

NAN = math.nan
SEEDS = range(5)


# The policy loss


def oracle_policy(logp: float, old: float, advantage: float, low: float, high: float, delta: float | None) -> float:
    ratio = math.exp(logp - old)
    clipped = 1 - low if ratio < 1 - low else 1 + high if ratio > 1 + high else ratio
    bounded = ratio if delta is None or ratio < delta else delta
    return max(-bounded * advantage, -clipped * advantage)


def policy(low: float, high: float, delta: float | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda logp, old, advantage: objectives.clipped_policy_loss(logp, old, advantage, low, high, delta)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("low", "high", "delta"), [(0.2, 0.2, None), (0.2, 0.28, None), (0.5, 0.5, 4.0), (0.0, 0.0, 1.5)]
)
def test_clipped_policy_loss(seed: int, low: float, high: float, delta: float | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    old, change, advantage = torch.randn(3, 200, dtype=torch.float64, generator=generator)
    logp = (old + change).requires_grad_()
    found = policy(low, high, delta)(logp, old, advantage)
    rows = zip(logp.tolist(), old.tolist(), advantage.tolist(), strict=True)
    assert_near(found, [oracle_policy(*row, low, high, delta) for row in rows])
    found.sum().backward()
    ratio = change.exp()
    live = torch.where(advantage > 0, ratio <= 1 + high, ratio >= 1 - low)
    if delta is not None:
        live &= (advantage > 0) | (ratio <= delta)
    assert 0 < live.sum() < 200 or low == 0
    assert_near(logp.grad, torch.where(live, -ratio * advantage, 0.0))


def test_clipping_case_by_case() -> None:
    """(ratio, advantage, loss, gradient in logp) with epsilon_low 0.2, epsilon_high 0.3 and delta 2."""
    cases = [
        (1.0, 2.0, -2.0, -2.0),  # on policy: the policy gradient
        (1.0, -2.0, 2.0, 2.0),
        (1.25, 1.0, -1.25, -1.25),  # within epsilon_high, beyond epsilon_low
        (1.5, 1.0, -1.3, 0.0),  # likely enough
        (1.5, -1.0, 1.5, 1.5),  # went the wrong way: brought back
        (0.5, 1.0, -0.5, -0.5),
        (0.5, -1.0, 0.8, 0.0),  # unlikely enough
        (3.0, -1.0, 2.0, 0.0),  # above delta: no further
        (3.0, 1.0, -1.3, 0.0),
        (3.0, 0.0, 0.0, 0.0),
    ]
    ratio, advantage, loss, gradient = torch.tensor(cases, dtype=torch.float64).T
    logp = ratio.log().requires_grad_()
    found = policy(0.2, 0.3, 2.0)(logp, torch.zeros_like(ratio), advantage)
    found.sum().backward()
    assert_near(found, loss)
    assert_near(logp.grad, gradient)


def away_from_kinks(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """logp, old, advantage of ratios at least 0.02 from the bounds 0.8, 1.3 and 2."""
    generator = torch.Generator().manual_seed(seed)
    ratio = torch.tensor([0.3, 0.7, 0.9, 1.0, 1.1, 1.5, 1.9, 3.0], dtype=torch.float64)
    ratio = ratio + 0.02 * (torch.rand(8, dtype=torch.float64, generator=generator) - 0.5)
    old, advantage = torch.randn(2, 8, dtype=torch.float64, generator=generator)
    return (old + ratio.log()).requires_grad_(), old, advantage


@pytest.mark.parametrize("seed", SEEDS)
def test_gradients_equal_finite_differences(seed: int) -> None:
    logp, old, advantage = away_from_kinks(seed)
    for delta in (None, 2.0):
        assert torch.autograd.gradcheck(lambda new: policy(0.2, 0.3, delta)(new, old, advantage), (logp,))  # noqa: B023
    assert torch.autograd.gradcheck(lambda new: objectives.importance_ratio(new, old), (logp,))
    for estimator in ("k1", "k2", "k3"):
        assert torch.autograd.gradcheck(lambda new: objectives.kl_penalty(new, old, estimator), (logp,))  # noqa: B023


def test_gradients_flow_into_the_new_log_probs_alone() -> None:
    logp, old, advantage = (t.detach().requires_grad_() for t in away_from_kinks(0))
    total = policy(0.2, 0.3, None)(logp, old, advantage).sum() + objectives.kl_penalty(logp, old, "k3").sum()
    total.backward()
    assert logp.grad is not None and old.grad is None and advantage.grad is None
    same = logp.detach().requires_grad_()
    policy(0.2, 0.2, None)(same, same, advantage).sum().backward()  # old = new: still the policy gradient
    assert_near(same.grad, -advantage.detach())
    assert not objectives.truncated_importance_weight(logp, old, 2.0).requires_grad


# KL


@pytest.mark.parametrize("seed", SEEDS)
def test_kl_estimators(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logp, ref = torch.randn(2, 3, 50, dtype=torch.float64, generator=generator)
    x = ref - logp
    assert_near(objectives.kl_penalty(logp, ref, "k1"), logp - ref)
    assert_near(objectives.kl_penalty(logp, ref, "k2"), 0.5 * (logp - ref) ** 2)
    assert_near(objectives.kl_penalty(logp, ref, "k3"), x.exp() - 1 - x)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_the_estimators_estimate(seed: int) -> None:
    """Means over the policy, exactly, by enumerating a vocabulary of 7."""
    generator = torch.Generator().manual_seed(seed)
    logits, ref = torch.randn(2, 7, dtype=torch.float64, generator=generator)
    logits.requires_grad_()
    ref = ref.log_softmax(0)
    logp = logits.log_softmax(0)
    p, q = logp.detach().exp(), ref.exp()
    kl = (p * (logp.detach() - ref)).sum()

    def gradient_of(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    forward = gradient_of((logp.exp() * (logp - ref)).sum())
    reverse = gradient_of((q * (ref - logp)).sum())
    means = {k: (p * objectives.kl_penalty(logp, ref, k)).sum() for k in ("k1", "k2", "k3")}
    assert_near(means["k1"].detach(), kl)
    assert_near(means["k3"].detach(), kl)
    assert_near(gradient_of(means["k1"]), torch.zeros(7))
    assert_near(gradient_of(means["k2"]), forward)
    assert_near(gradient_of(means["k3"]), reverse)


@settings(max_examples=200, deadline=None)
@given(st.floats(-80, 80, width=32), st.floats(-20, 0, width=32), st.booleans())
def test_k2_and_k3_are_never_negative(x: float, logp: float, tiny: bool) -> None:
    new = torch.tensor([logp if not tiny else 0.0])
    ref = torch.tensor([x * (1e-6 if tiny else 1.0)]) + new
    for estimator in ("k2", "k3"):
        value = objectives.kl_penalty(new, ref, estimator)
        assert value >= 0 and value.isfinite()
        assert (objectives.kl_penalty(new, new, estimator) == 0).all()


def test_k3_keeps_its_digits_near_zero_in_float32() -> None:
    x = torch.logspace(-4, 1.5, 400) * torch.tensor([1.0, -1.0]).repeat(200)
    found = objectives.kl_penalty(torch.zeros(400), x, "k3").double()
    wanted = x.double().expm1() - x.double()
    # Half an ulp of x against x^2 / 2: a relative error of 1.2e-7 / |x|, where e^x - 1 - x would lose all digits.
    assert ((found - wanted).abs() <= wanted * (2.5e-7 / x.double().abs() + 5e-7)).all()


# Extreme ratios, float32


def test_log_ratios_of_80_are_finite_and_larger_ones_are_not_hidden() -> None:
    change = torch.tensor([80.0, -80.0]).repeat(3)
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0, 0.0])
    logp = change.clone().requires_grad_()
    loss = policy(0.2, 0.2, None)(logp, torch.zeros(6), advantage)
    loss.sum().backward()
    rows = zip(change.tolist(), advantage.tolist(), strict=True)
    wanted = [oracle_policy(c, 0.0, a, 0.2, 0.2, None) for c, a in rows]
    assert_near(loss, wanted, 1e-5)
    assert logp.grad is not None and logp.grad.isfinite().all()
    for estimator in ("k1", "k2", "k3"):
        assert objectives.kl_penalty(change, torch.zeros(6), estimator).isfinite().all()
    assert policy(0.2, 0.2, None)(torch.tensor([89.0]), torch.zeros(1), -torch.ones(1)).isinf().all()
    assert objectives.kl_penalty(torch.tensor([-89.0]), torch.zeros(1), "k3").isinf().all()
    assert policy(0.2, 0.2, None)(torch.tensor([NAN]), torch.zeros(1), torch.ones(1)).isnan().all()


@pytest.mark.parametrize("seed", SEEDS)
def test_losses_in_float32_are_near_float64(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    old = -10 * torch.rand(500, generator=generator)
    logp, advantage = old + 0.3 * torch.randn(500, generator=generator), torch.randn(500, generator=generator)
    for function in (policy(0.2, 0.28, None), lambda n, o, _: objectives.kl_penalty(n, o, "k3")):
        near, wanted = (function(*(t.to(dtype) for t in (logp, old, advantage))) for dtype in (None, torch.float64))
        # logp - old is a difference of two float32 near 10: an error of 1e-6 in the exponent, as much in the ratio.
        torch.testing.assert_close(near.double(), wanted, atol=3e-6, rtol=3e-6)


# Importance weights and end tokens


def test_truncated_importance_weight() -> None:
    recorded = torch.tensor([-1.0, -1.0, -1.0, -1.0, -200.0, -1.0, NAN], dtype=torch.float64)
    recomputed = torch.tensor([-1.0, 0.0, -3.0, 2.0, 0.0, -math.inf, 0.0], dtype=torch.float64)
    found = objectives.truncated_importance_weight(recomputed, recorded, 3.0)
    assert_near(found, [1.0, math.e, math.exp(-2), 3.0, 3.0, 0.0, NAN])
    assert (
        objectives.truncated_importance_weight(recomputed.float(), recorded.float(), 3.0)[4] == 3.0
    )  # e^200 overflows


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("eos_ids", [5, [5], (2, 5), torch.tensor([5, 2]), []])
def test_until_first_eos(seed: int, eos_ids: int | list[int] | tuple[int, ...] | Tensor) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 12, (20, 15), generator=generator)
    generated = torch.rand(20, 15, generator=generator) < 0.7
    generated[0] = False
    ends = {eos_ids} if isinstance(eos_ids, int) else {int(token) for token in eos_ids}
    wanted = torch.zeros(20, 15, dtype=torch.bool)
    for row in range(20):
        for column in range(15):
            if generated[row, column]:
                wanted[row, column] = True
                if int(tokens[row, column]) in ends:
                    break
    found = objectives.until_first_eos(tokens, generated, eos_ids)
    assert found.dtype == torch.bool and torch.equal(found, wanted)


# Refusals

ROWS, TABLE = torch.zeros(4), torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: policy(0.2, 0.2, None)(ROWS, ROWS, ROWS[:1]), r"logp \[4\], old_logp \[4\], advantage \[1\]"),
        (lambda: policy(-0.1, 0.2, None)(ROWS, ROWS, ROWS), "epsilon_low=-0.1"),
        (lambda: policy(0.2, 0.3, 1.3)(ROWS, ROWS, ROWS), "delta=1.3 must be above 1 [+] epsilon_high"),
        (lambda: objectives.kl_penalty(ROWS, TABLE, "k1"), r"logp \[4\], ref_logp \[4, 3\]"),
        (lambda: objectives.kl_penalty(ROWS, ROWS, "k4"), "estimator='k4' is unknown"),
        (lambda: objectives.truncated_importance_weight(ROWS, ROWS, 0.0), "cap=0.0 must be > 0"),
        (lambda: objectives.truncated_importance_weight(ROWS, ROWS[:2], 1.0), "same shape"),
        (lambda: objectives.until_first_eos(TABLE.long(), ROWS > 0, 1), "same shape"),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_package_exports_its_objectives() -> None:
    assert mdlm_fast.rl.objectives is objectives
    for name in objectives.__all__:
        assert callable(getattr(objectives, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mdlm_fast.rl.nothing  # noqa: B018
