"""HeadGradient against autograd through a dense log-softmax in float64, over several calls and backward passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mdlm_fast import ops

HIDDEN, VOCAB = 24, 83


def dense(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float) -> Tensor:
    logits = hidden @ weight.T / temperature if bias is None else (hidden @ weight.T + bias) / temperature
    logits = logits.index_fill(1, torch.tensor([5]), -torch.inf)
    logits = torch.cat([logits[:, : VOCAB - 4], torch.full((len(logits), 4), -torch.inf, dtype=logits.dtype)], 1)
    return logits.log_softmax(1).gather(1, targets[:, None]).squeeze(1)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.ops("linear_token_logprobs", "linear_token_logprobs_backward")
def test_calls_of_several_backward_passes_give_the_gradient_of_their_sum(
    dtype: torch.dtype, with_bias: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(VOCAB, HIDDEN, generator=generator) * 0.3).to(dtype).requires_grad_()
    bias = torch.randn(VOCAB, generator=generator).to(dtype).requires_grad_() if with_bias else None
    exact = [t.detach().double().requires_grad_() for t in (weight, bias) if t is not None]
    exact_bias = exact[1] if with_bias else None
    collected = ops.HeadGradient()
    total = torch.zeros((), dtype=torch.float64)
    for rows, temperature in ((7, 1.0), (1, 0.6), (12, 0.6)):
        hidden = torch.randn(rows, HIDDEN, generator=generator).to(dtype).requires_grad_()
        twin = hidden.detach().double().requires_grad_()
        targets = torch.randint(6, VOCAB - 4, (rows,), generator=generator)
        scale = torch.randn(rows, generator=generator)
        logp, entropy = collected.logprobs(hidden, weight, bias, targets, temperature, [5], VOCAB - 4)
        expected = dense(twin, exact[0], exact_bias, targets, temperature)
        torch.testing.assert_close(logp.double(), expected, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=1e-2)
        assert not entropy.requires_grad
        (logp * scale).sum().backward()
        (part,) = torch.autograd.grad((expected * scale.double()).sum(), twin, retain_graph=True)
        bound = 1e-5 if dtype == torch.float32 else 0.03
        assert hidden.grad is not None
        torch.testing.assert_close(hidden.grad.double(), part, atol=bound, rtol=bound)
        total = total + (expected * scale.double()).sum()
    assert weight.grad is None  # nothing until asked
    before = torch.randn(VOCAB, HIDDEN, generator=generator).to(dtype)
    weight.grad = before.clone()
    collected.add()
    total.backward()
    bound = 1e-5 if dtype == torch.float32 else 0.05
    assert exact[0].grad is not None
    torch.testing.assert_close(weight.grad.double(), exact[0].grad + before.double(), atol=bound, rtol=bound)
    if bias is not None and exact_bias is not None:
        assert bias.grad is not None and exact_bias.grad is not None
        torch.testing.assert_close(bias.grad.double(), exact_bias.grad, atol=bound, rtol=bound)
    once = weight.grad.clone()
    collected.add()  # everything was added
    assert torch.equal(weight.grad, once)


@pytest.mark.ops("linear_token_logprobs", "linear_token_logprobs_backward")
def test_a_call_without_a_backward_pass_adds_nothing() -> None:
    weight = torch.randn(VOCAB, HIDDEN).requires_grad_()
    collected = ops.HeadGradient()
    collected.logprobs(torch.randn(3, HIDDEN, requires_grad=True), weight, None, torch.tensor([6, 7, 8]))
    collected.add()
    assert weight.grad is None
