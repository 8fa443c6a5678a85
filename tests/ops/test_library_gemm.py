"""LM-head ops whose logits pass through a scratch tensor: its size changes nothing. Other backends run this too."""

from __future__ import annotations

import pytest
import torch

from mdlm_fast import ops
from mdlm_fast.ops import _library_gemm

LOGPROBS = ("linear_token_logprobs", "linear_token_logprobs_backward")
WIDTH = 4100


def problem(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whole numbers, so that the order of a sum says nothing; some rows twice, some padding."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randint(-2, 3, (2, 6, 5), generator=generator).to(dtype)
    weight = torch.randint(-2, 3, (WIDTH, 5), generator=generator).to(dtype)
    bias = torch.randint(-2, 3, (WIDTH,), generator=generator).to(dtype)
    return hidden, weight, bias, torch.tensor([11, 0, -1, 5, 5, 7, 0], dtype=torch.int32)


@pytest.mark.ops("linear_score_rows")
@pytest.mark.parametrize("rows_at_once", (1, 3))
def test_groups_of_rows(backend: str, rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, rows = problem(torch.float32)
    modes = (
        {},
        {"temperature": torch.tensor([0.0, 0.8]), "seeds": 3, "guidance_hidden": -hidden, "guidance_scale": 0.5},
    )
    whole = [ops.linear_score_rows(hidden, weight, bias, rows, **mode) for mode in modes]
    monkeypatch.setattr(_library_gemm, "SCRATCH_BYTES", rows_at_once * WIDTH * 4)
    for mode, expected in zip(modes, whole, strict=True):
        for a, b in zip(ops.linear_score_rows(hidden, weight, bias, rows, **mode), expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.ops(*LOGPROBS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_chunks_of_the_vocabulary(backend: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, rows = problem(dtype)
    hidden[0, 0] = 0.0  # padding reads this row
    targets = torch.tensor([4099, 0, 9999, 2047, 2048, 4096, 7])
    upstream = torch.tensor([1.0, -0.5, 0.0, 2.0, 0.25, -1.0, 3.0])

    def run() -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
        logp, entropy = ops.linear_token_logprobs(*leaves, rows, targets, 0.7, forbidden_ids=[3, 3000])
        # The log-prob of padding is -inf: it stays out of the loss.
        grads = torch.autograd.grad((logp[rows >= 0] * upstream[rows >= 0]).sum(), leaves)
        return [logp.detach(), entropy, *grads]

    whole = run()
    monkeypatch.setattr(_library_gemm, "SCRATCH_BYTES", 1)  # a tile at a time
    logp, entropy, *grads = run()
    assert torch.equal(logp, whole[0]) and torch.equal(entropy, whole[1])
    for a, b in zip(grads, whole[2:], strict=True):
        torch.testing.assert_close(a, b, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.ops(*LOGPROBS)
def test_what_padding_reads_does_not_spread(backend: str) -> None:
    """Padding is computed from row 0, which nobody may have asked for."""
    hidden, weight, bias, rows = problem(torch.float32)
    hidden[0, 0] = torch.nan
    rows = torch.where(rows == 0, -1, rows)
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    logp, _ = ops.linear_token_logprobs(*leaves, rows, torch.arange(7))
    for grad in torch.autograd.grad(logp[rows >= 0].sum(), leaves):
        assert torch.isfinite(grad).all()
    assert torch.isfinite(logp[rows >= 0]).all()
