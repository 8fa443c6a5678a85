"""Log-probs of given tokens and their gradients, with and without the head, against float64 autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import RowOracle, within_twice_torch

from mdlm_fast import ops

PLAIN = ("token_logprobs", "token_logprobs_backward")
LINEAR = ("linear_token_logprobs", "linear_token_logprobs_backward")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def dense(
    z: torch.Tensor, targets: torch.Tensor, temperature: torch.Tensor, allowed: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logp, entropy) by plain PyTorch in the dtype of z, differentiable."""
    log_p = torch.where(allowed, z / temperature.to(z.dtype)[:, None], -torch.inf).log_softmax(-1)
    entropy = -(log_p.exp() * torch.where(allowed, log_p, 0.0)).sum(-1)
    return log_p.gather(1, targets[:, None])[:, 0], entropy


def problem(seed: int, width: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    count, hidden_size = 64, 24
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.rand(width, generator=generator) < 0.9
    allowed[width * 19 // 20 :] = False
    allowed[0] = True
    limit = max(1, width * 19 // 20)
    forbidden = (~allowed[:limit]).nonzero()[:, 0]
    candidates = allowed.nonzero()[:, 0]
    return {
        "hidden": torch.randn(3, 40, hidden_size, generator=generator).to(dtype),
        "weight": (torch.randn(width, hidden_size, generator=generator) * 0.6).to(dtype),
        "bias": torch.randn(width, generator=generator).to(dtype),
        "rows": torch.randint(0, 120, (count,), generator=generator, dtype=torch.int32),  # some twice
        "targets": candidates[torch.randint(candidates.numel(), (count,), generator=generator)],
        "temperature": torch.rand(count, generator=generator) + 0.5,
        "forbidden_ids": forbidden,
        "vocab_limit": limit,
        "allowed": allowed,
        "weights": torch.randn(2, count, generator=generator),
    }


@pytest.mark.ops("token_logprobs")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", (1, 2, 31, 2047, 2049, 5000))
def test_values(backend: str, width: int, dtype: torch.dtype) -> None:
    p = problem(width, width)
    logits = (p["hidden"] @ p["weight"].t() * torch.linspace(0.1, 3, 40)[:, None]).to(dtype)
    logp, entropy = ops.token_logprobs(
        logits, p["rows"], p["targets"], p["temperature"], p["forbidden_ids"], p["vocab_limit"]
    )
    z = logits.flatten(0, 1)[p["rows"].long()]
    exact = [
        RowOracle(row, temperature=float(t), forbidden=tuple((~p["allowed"]).nonzero()[:, 0].tolist()))
        for row, t in zip(z.double().numpy(), p["temperature"], strict=True)
    ]
    logp32, entropy32 = dense(z.float(), p["targets"], p["temperature"], p["allowed"])
    wanted = [o.log_probs(True)[t] for o, t in zip(exact, p["targets"].tolist(), strict=True)]
    for ours, exact_values, fp32 in (
        (logp, wanted, logp32),
        (entropy, [o.entropy(True) for o in exact], entropy32),
    ):
        error, allowed = within_twice_torch(ours, np.array(exact_values), fp32)
        assert error <= allowed


@pytest.mark.ops("token_logprobs")
def test_confident_targets_keep_their_digits(backend: str) -> None:
    gaps = torch.linspace(14, 30, 64)
    logits = torch.full((64, 3000), 29.0) - gaps[:, None]
    logits[:, 1234] = 29.0
    logp, entropy = ops.token_logprobs(logits, None, torch.full((64,), 1234))
    exact = [RowOracle(row) for row in logits.double().numpy()]
    np.testing.assert_allclose(logp, [o.log_probs(False)[1234] for o in exact], rtol=1e-6)
    np.testing.assert_allclose(entropy, [o.entropy(False) for o in exact], rtol=1e-5)


@pytest.mark.ops(*PLAIN)
@pytest.mark.parametrize("entropy_grad", (False, True))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", (1, 2, 31, 2049))
def test_gradients_to_logits(backend: str, width: int, dtype: torch.dtype, entropy_grad: bool) -> None:
    """Within twice the error of PyTorch in the same dtype; rows named twice add up, others get zero."""
    p = problem(width + 1, width)
    logits = (p["hidden"] @ p["weight"].t()).to(dtype)

    def gradient(kind: str) -> torch.Tensor:
        z = (logits.double() if kind == "exact" else logits.clone()).requires_grad_()
        if kind == "ours":
            logp, entropy = ops.token_logprobs(
                z,
                p["rows"],
                p["targets"],
                p["temperature"],
                p["forbidden_ids"],
                p["vocab_limit"],
                entropy_grad=entropy_grad,
            )
            assert entropy.requires_grad == entropy_grad
        else:
            picked = z.flatten(0, 1)[p["rows"].long()]
            logp, entropy = dense(picked, p["targets"], p["temperature"], p["allowed"])
        loss = (logp * p["weights"][0].to(logp.dtype)).sum()
        if entropy_grad:
            loss = loss + (entropy * p["weights"][1].to(entropy.dtype)).sum()
        (grad,) = torch.autograd.grad(loss, z)
        return grad.double()

    exact, theirs, ours = gradient("exact"), gradient("torch"), gradient("ours")
    one_ulp = exact.abs().max() * torch.finfo(dtype).eps
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max() + one_ulp
    unused = torch.ones(120, dtype=torch.bool)
    unused[p["rows"].long()] = False
    assert (ours.view(120, -1)[unused] == 0).all()
    assert (ours[..., ~p["allowed"]] == 0).all()


@pytest.mark.ops(*LINEAR)
@pytest.mark.parametrize("entropy_grad", (False, True))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width,bias", ((2, True), (31, False), (2049, True)))
def test_linear_values_and_gradients(
    backend: str, width: int, bias: bool, dtype: torch.dtype, entropy_grad: bool
) -> None:
    p = problem(width + 2, width, dtype=dtype)
    inputs = ["hidden", "weight", "bias"] if bias else ["hidden", "weight"]

    def run(kind: str) -> list[torch.Tensor]:
        leaves = [(p[n].double() if kind == "exact" else p[n].clone()).requires_grad_() for n in inputs]
        hidden, weight = leaves[:2]
        b = leaves[2] if bias else None
        if kind == "ours":
            logp, entropy = ops.linear_token_logprobs(
                hidden,
                weight,
                b,
                p["rows"],
                p["targets"],
                p["temperature"],
                p["forbidden_ids"],
                p["vocab_limit"],
                entropy_grad=entropy_grad,
            )
        else:
            z = F.linear(hidden.flatten(0, 1)[p["rows"].long()], weight, b)
            logp, entropy = dense(z, p["targets"], p["temperature"], p["allowed"])
        loss = (logp * p["weights"][0].to(logp.dtype)).sum()
        if entropy_grad:
            loss = loss + (entropy * p["weights"][1].to(entropy.dtype)).sum()
        return [x.detach().double() for x in (logp, entropy, *torch.autograd.grad(loss, leaves))]

    names = ["logp", "entropy", *inputs]
    for name, exact, theirs, ours in zip(names, run("exact"), run("torch"), run("ours"), strict=True):
        one_ulp = exact.abs().max() * torch.finfo(dtype).eps
        assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max() + one_ulp, name


@pytest.mark.ops(*LINEAR)
@pytest.mark.parametrize("needed", ((True, False, False), (False, True, False), (False, False, True), (True,) * 3))
def test_only_the_gradients_asked_for(backend: str, needed: tuple[bool, bool, bool]) -> None:
    p = problem(3, 300)
    leaves = [p[n].clone().requires_grad_(need) for n, need in zip(("hidden", "weight", "bias"), needed, strict=True)]
    logp, _ = ops.linear_token_logprobs(*leaves, p["rows"], p["targets"], p["temperature"], p["forbidden_ids"])
    logp.sum().backward()
    assert [leaf.grad is not None for leaf in leaves] == list(needed)


@pytest.mark.ops(*PLAIN, *LINEAR)
def test_the_two_ops_agree(backend: str) -> None:
    """Integer-valued inputs make the product exact, so only rounding of the sums may differ."""
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randint(-2, 3, (2, 30, 8), generator=generator).float()
    weight = torch.randint(-2, 3, (4500, 8), generator=generator).float()
    rows = torch.tensor([0, 59, -1, 7, 7], dtype=torch.int32)
    targets = torch.tensor([4499, 0, -5, 2048, 2047])
    linear = ops.linear_token_logprobs(hidden, weight, None, rows, targets, 0.9)
    plain = ops.token_logprobs(F.linear(hidden, weight), rows, targets, 0.9)
    for a, b in zip(linear, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert linear[0][2] == -torch.inf and linear[1][2] == 0


@pytest.mark.ops(*PLAIN)
def test_padding_rows_get_no_gradient(backend: str) -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(5), requires_grad=True)
    logp, _ = ops.token_logprobs(logits, torch.tensor([2, -1], dtype=torch.int32), torch.tensor([7, 7]))
    logp[0].backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    assert (logits.grad[[0, 1, 3]] == 0).all() and (logits.grad[2] != 0).all()


@pytest.mark.ops(*PLAIN)
@pytest.mark.parametrize("layout", ("sliced", "strided columns", "transposed"))
def test_trap_l2_gradients_through_any_layout(backend: str, layout: str) -> None:
    base = torch.randn(3, 9, 60, generator=torch.Generator().manual_seed(6))
    rows = torch.tensor([0, 4, 4, 8], dtype=torch.int32)
    targets = torch.tensor([1, 2, 3, 4])
    views = {
        "sliced": lambda x: x[:, -5:, 2:],
        "strided columns": lambda x: x[:, -5:, ::2],
        "transposed": lambda x: x.transpose(1, 2)[:, :, -5:].transpose(1, 2),
    }
    grads = []
    for copy in (False, True):
        leaf = base.clone().requires_grad_()
        view = views[layout](leaf)
        logp, _ = ops.token_logprobs(view.contiguous() if copy else view, rows, targets, 0.7)
        (logp * torch.tensor([1.0, -2.0, 3.0, 0.5])).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.ops(*LINEAR)
def test_numerical_gradient(backend: str) -> None:
    """Central differences of the float64 definition, not autograd: a check of the formula itself."""
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(3, 4, generator=generator)
    weight = torch.randn(6, 4, generator=generator)
    targets = torch.tensor([0, 5, 2])
    leaf = weight.clone().requires_grad_()
    logp, entropy = ops.linear_token_logprobs(hidden, leaf, None, None, targets, 0.8, entropy_grad=True)
    (logp.sum() + 0.5 * entropy.sum()).backward()

    def loss(w: torch.Tensor) -> float:
        z = hidden.double() @ w.t() / 0.8
        p = torch.exp(z) / torch.exp(z).sum(1, keepdim=True)
        return float(p.gather(1, targets[:, None]).log().sum() - 0.5 * (p * p.log()).sum())

    for i in range(6):
        for j in range(4):
            bump = torch.zeros(6, 4, dtype=torch.float64)
            bump[i, j] = 1e-5
            numerical = (loss(weight.double() + bump) - loss(weight.double() - bump)) / 2e-5
            assert abs(float(leaf.grad[i, j]) - numerical) < 1e-5


@pytest.mark.ops("token_logprobs", "score_rows")
def test_rollout_and_training_agree(backend: str) -> None:
    """The ratio of new to old probabilities is 1 before the first update: same forbidden ids, same limit."""
    logits = torch.randn(20, 4000, generator=torch.Generator().manual_seed(8)) * 4
    common = {"forbidden_ids": [0, 17], "vocab_limit": 3900}
    scores = ops.score_rows(logits, temperature=0.8, seeds=1, **common)
    raw, _ = ops.token_logprobs(logits, None, scores.token, 1.0, **common)
    tempered, _ = ops.token_logprobs(logits, None, scores.token, 0.8, **common)
    torch.testing.assert_close(raw, scores.logp, rtol=3e-7, atol=3e-7)
    torch.testing.assert_close(tempered, scores.logp_T, rtol=3e-7, atol=3e-7)


@pytest.mark.ops(*LINEAR)
def test_empty_batches(backend: str) -> None:
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    none = torch.empty(0, dtype=torch.int32)
    logp, entropy = ops.linear_token_logprobs(hidden, weight, None, none, torch.empty(0, dtype=torch.int64))
    assert logp.shape == entropy.shape == (0,)
    logp.sum().backward()
    assert hidden.grad is not None and not hidden.grad.any() and not weight.grad.any()
