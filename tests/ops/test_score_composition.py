"""Ops defined by others: partials and finish make `score_rows`; a head and `score_rows` make the linear op."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mdlm_fast import ops


@pytest.mark.ops("score_rows", "score_partials", "finish_scores")
@pytest.mark.parametrize("stats_from", ("raw", "tempered"))
@pytest.mark.parametrize("normalize_over", ("allowed", "all"))
def test_trap_l8_shards_of_the_vocabulary_agree(backend: str, stats_from: str, normalize_over: str) -> None:
    """Shards cut at tile ends, concatenated and finished, are `score_rows` of the whole: same ties, same draw."""
    logits = torch.randn(9, 7000, generator=torch.Generator().manual_seed(12)) * 3
    logits[8, [100, 5000]] = 20.0  # a tie between two shards: the lower id wins
    logits[4, 2048:4096] = -torch.inf
    rows = torch.tensor([0, 4, -1, 8, 3], dtype=torch.int32)
    common: dict[str, Any] = {
        "forbidden_ids": [0, 2047, 6999],
        "vocab_limit": 6500,
        "normalize_over": normalize_over,
        "stats_from": stats_from,
    }
    for temperature, filters in ((0.0, {}), (0.7, {}), (0.7, {"top_k": 20, "top_p": 0.9}), (0.0, {"top_k": 4})):
        shards = [
            ops.score_partials(logits[:, low:high], rows, temperature=temperature, vocab_start=low, **common)
            for low, high in ((0, 2048), (2048, 6144), (6144, 7000))
        ]
        assert [tuple(s.shape) for s in shards] == [(5, 1, 8), (5, 2, 8), (5, 1, 8)]
        draw: dict[str, Any] = {"temperature": temperature, "seeds": 21, "step": 2, **filters, **common}
        finished = ops.finish_scores(torch.cat(shards, 1), rows, logits=logits, **draw)
        whole = ops.score_rows(logits, rows, **draw)
        assert temperature > 0 or whole.token[3] == 100
        for name in ("token", "logp", "logp_T", "margin", "entropy"):
            assert torch.equal(getattr(finished, name), getattr(whole, name)), name


@pytest.mark.ops("score_partials", "finish_scores")
def test_finish_from_hidden_states(backend: str) -> None:
    """The columns a draw needs can be computed again from hidden states and head; integers keep the GEMM exact."""
    generator = torch.Generator().manual_seed(13)
    hidden = torch.randint(-2, 3, (6, 8), generator=generator).float()
    weight = torch.randint(-2, 3, (5000, 8), generator=generator).float()
    bias = torch.randint(-1, 2, (5000,), generator=generator).float()
    logits = torch.nn.functional.linear(hidden, weight, bias)
    for filters in ({}, {"top_k": 30}, {"normalize_over": "all", "forbidden_ids": [3]}):
        common = {k: v for k, v in filters.items() if k != "top_k"}
        partials = ops.score_partials(logits, temperature=0.9, **common)
        draw = {"temperature": 0.9, "seeds": 2, **filters}
        a = ops.finish_scores(partials, logits=logits, **draw)
        b = ops.finish_scores(partials, hidden=hidden, weight=weight, bias=bias, **draw)
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x, y)


@pytest.mark.ops("score_rows", "linear_score_rows")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("rows", (3, 66))
def test_linear_score_rows_is_score_rows_of_the_product(backend: str, dtype: torch.dtype, rows: int) -> None:
    """Integer-valued inputs are exact in fp32 whatever the order of the sum, so equality can be asked."""
    generator = torch.Generator().manual_seed(14)
    hidden = torch.randint(-2, 3, (2, 40, 12), generator=generator).to(dtype)
    weight = torch.randint(-2, 3, (2100, 12), generator=generator).to(dtype)
    bias = torch.randint(-3, 4, (2100,), generator=generator).to(dtype)
    other = torch.randint(-2, 3, (2, 40, 12), generator=generator).to(dtype)
    index = torch.randperm(80, generator=generator)[:rows].to(torch.int32)
    index[0] = -1
    for b, extra in zip(
        (None, bias, bias, None, bias),
        (
            {},
            {"temperature": 0.7, "seeds": 6, "stats_from": "tempered"},
            {"temperature": torch.tensor([0.0, 0.9]), "seeds": torch.tensor([1, 2]), "top_k": 12, "top_p": 0.9},
            {"forbidden_ids": [1, 2048], "vocab_limit": 2090, "normalize_over": "all", "temperature": 1.1, "seeds": 3},
            {"guidance": other, "guidance_scale": 1.5},
        ),
        strict=True,
    ):
        extra = dict(extra)
        guidance = extra.pop("guidance", None)
        linear = torch.nn.functional.linear
        a = ops.linear_score_rows(hidden, weight, b, index, guidance_hidden=guidance, **extra)
        g = None if guidance is None else linear(guidance, weight, b)
        c = ops.score_rows(linear(hidden, weight, b), index, guidance_logits=g, **extra)
        assert torch.equal(a.token, c.token)
        for x, y in zip(a[1:], c[1:], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


@pytest.mark.ops("linear_score_rows", "linear_token_logprobs", "linear_token_logprobs_backward")
def test_trap_l2_heads_and_hidden_states_of_any_strides(backend: str) -> None:
    generator = torch.Generator().manual_seed(16)
    hidden = torch.randint(-2, 3, (2, 8, 5), generator=generator).float().transpose(1, 2)[:, 1:]
    weight = torch.randint(-2, 3, (8, 40), generator=generator).float().t()
    bias = torch.randint(-2, 3, (80,), generator=generator).float()[::2]
    targets = torch.arange(8)
    results = []
    for inputs in ((hidden, weight, bias), (hidden.contiguous(), weight.contiguous(), bias.contiguous())):
        leaves = [x.detach().requires_grad_() for x in inputs]
        logp, entropy = ops.linear_token_logprobs(*leaves, None, targets)
        grads = torch.autograd.grad(logp.sum(), leaves)
        results.append([*ops.linear_score_rows(*inputs, temperature=0.8, seeds=2), logp, entropy, *grads])
    for strided, dense in zip(*results, strict=True):
        torch.testing.assert_close(strided, dense, rtol=1e-6, atol=1e-6)


@pytest.mark.ops("score_partials")
def test_rows_behind_num_rows_are_padding(backend: str) -> None:
    logits = torch.randn(6, 2100)
    rows = torch.tensor([4, 1, 5, 0], dtype=torch.int32)
    counted = ops.score_partials(logits, rows, num_rows=torch.tensor([2], dtype=torch.int32))
    padded = ops.score_partials(logits, torch.tensor([4, 1, -1, -1], dtype=torch.int32))
    assert torch.equal(counted.view(torch.int32), padded.view(torch.int32))
