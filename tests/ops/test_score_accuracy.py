"""Statistics of rows against float64: never worse than twice PyTorch's own fp32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import RowOracle, within_twice_torch

from mdlm_fast import ops

WIDTHS = (1, 2, 31, 2047, 2048, 2049, 5000)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def oracles(logits: torch.Tensor, **arguments: object) -> list[RowOracle]:
    return [RowOracle(row, **arguments) for row in logits.double().numpy()]


def entropy_fp32(log_p: torch.Tensor) -> torch.Tensor:
    return -torch.where(log_p > -np.inf, log_p.exp() * log_p, 0.0).sum(-1)


def margin_fp32(log_p: torch.Tensor) -> torch.Tensor:
    top = log_p.exp().topk(min(2, log_p.shape[-1]), dim=-1).values
    return top[:, 0] - top[:, 1] if top.shape[1] > 1 else top[:, 0]


def check_all(logits: torch.Tensor, temperature: float) -> None:
    """Greedy scores at a temperature that only `logp_T` and the tempered statistics see."""
    z = logits.float()
    exact = oracles(logits, temperature=temperature)
    token = [oracle.greedy for oracle in exact]
    pairs = list(zip(exact, token, strict=True))
    for stats_from in ("raw", "tempered"):
        scores = ops.score_rows(logits, temperature=temperature, sample=False, stats_from=stats_from)
        assert scores.token.tolist() == token
        tempered = stats_from == "tempered"
        raw_fp32 = z.log_softmax(-1)
        tempered_fp32 = (z / temperature).log_softmax(-1)
        shape_fp32 = tempered_fp32 if tempered else raw_fp32
        rows = torch.arange(len(token))
        for name, ours, wanted, fp32 in (
            ("logp", scores.logp, [o.log_probs(False)[t] for o, t in pairs], raw_fp32[rows, token]),
            ("logp_T", scores.logp_T, [o.log_probs(True)[t] for o, t in pairs], tempered_fp32[rows, token]),
            ("margin", scores.margin, [o.margin(tempered) for o in exact], margin_fp32(shape_fp32)),
            ("entropy", scores.entropy, [o.entropy(tempered) for o in exact], entropy_fp32(shape_fp32)),
        ):
            error, allowed = within_twice_torch(ours, np.array(wanted), fp32)
            assert error <= allowed, f"{name} ({stats_from}): error {error:.3g}, allowed {allowed:.3g}"


@pytest.mark.ops("score_rows")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_accuracy(backend: str, width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(width)
    logits = torch.randn(64, width, generator=generator) * torch.linspace(0.1, 12, 64)[:, None]
    check_all(logits.to(dtype), temperature=0.7)


@pytest.mark.ops("score_rows")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_accuracy_real_vocabulary(backend: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(64, 126464, generator=generator) * torch.linspace(0.5, 9, 64)[:, None]
    check_all(logits.to(dtype), temperature=1.3)


@pytest.mark.ops("score_rows")
@pytest.mark.parametrize("gap", (14.0, 17.5, 20.0, 24.0, 30.0))
def test_trap_n3_confident_rows_keep_their_digits(backend: str, gap: float) -> None:
    """A gap of 14 at logits near 29 is where z - logsumexp in fp32 returns 0.0 or one coarse step."""
    generator = torch.Generator().manual_seed(int(gap))
    logits = 29.0 - gap + torch.rand(64, 5000, generator=generator)
    best = torch.randint(5000, (64,), generator=generator)
    logits[torch.arange(64), best] = 29.0
    exact = [o.log_probs(False)[b] for o, b in zip(oracles(logits), best.tolist(), strict=True)]
    scores = ops.score_rows(logits, temperature=1.0, sample=False, stats_from="tempered")
    for ours in (scores.logp, scores.logp_T):
        np.testing.assert_allclose(ours.double().numpy(), exact, rtol=1e-6, atol=0)
    assert torch.unique(scores.logp).numel() > 60  # rows do not tie
    np.testing.assert_allclose(scores.entropy.double().numpy(), [o.entropy(True) for o in oracles(logits)], rtol=1e-5)


@pytest.mark.ops("score_rows")
def test_large_and_tiny_logits(backend: str) -> None:
    """Nothing overflows at the ends of fp32, and a common offset changes nothing beyond rounding."""
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(64, 300, generator=generator)
    for offset in (-3e38, 3e38, 1e30):
        logits = torch.full_like(base, offset)
        logits[:, 7] = offset * (1.01 if offset < 1e38 and offset > 0 else 0.99)
        scores = ops.score_rows(logits)
        assert torch.isfinite(scores.logp).all() and torch.isfinite(scores.entropy).all()
    check_all(base * 1e-4, temperature=0.01)


@pytest.mark.ops("score_rows")
@pytest.mark.parametrize("width", (31, 2049, 6000))
def test_trap_n5_minus_infinity_entries(backend: str, width: int) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(64, width, generator=generator) * 4
    logits[torch.rand(64, width, generator=generator) < 0.4] = -np.inf
    logits[:, width // 2] = 0.5
    logits[0, :] = -np.inf
    logits[0, 3] = -70.0
    check_all(logits, temperature=0.5)


@pytest.mark.ops("score_rows")
@pytest.mark.parametrize("finite_tile", (0, 1, 2))
def test_trap_n6_whole_tiles_of_minus_infinity(backend: str, finite_tile: int) -> None:
    generator = torch.Generator().manual_seed(6)
    logits = torch.full((64, 6000), -np.inf)
    columns = slice(2048 * finite_tile, min(2048 * (finite_tile + 1), 6000))
    logits[:, columns] = torch.randn(64, columns.stop - columns.start, generator=generator) * 3
    check_all(logits, temperature=1.5)


@pytest.mark.ops("score_rows")
def test_trap_n4_token_ties_go_to_the_lowest_id(backend: str) -> None:
    generator = torch.Generator().manual_seed(7)
    logits = torch.randint(-3, 4, (80, 9000), generator=generator).to(torch.bfloat16)
    logits[0, :] = 2.0
    logits[1, :], logits[1, 4097], logits[1, 8999] = -1.0, 5.0, 5.0
    logits[2, :], logits[2, 10], logits[2, 20] = -1.0, -0.0, 0.0  # -0.0 and +0.0 tie
    scores = ops.score_rows(logits)
    first = [int(np.flatnonzero(row == row.max())[0]) for row in logits.float().numpy()]
    assert scores.token.tolist() == first
    assert scores.token[:3].tolist() == [0, 4097, 10]
    assert scores.margin[0] == 0.0 and scores.margin[1] == 0.0


@pytest.mark.ops("score_rows")
def test_trap_n2_greedy_is_the_argmax_of_the_raw_logits(backend: str) -> None:
    """Logits above 11 (fp16) and 88 (fp32) overflow exp(z); equal maxima would then win by index."""
    logits = torch.zeros(3, 500)
    logits[:, 30], logits[:, 400] = 90.0, 95.0
    assert ops.score_rows(logits).token.tolist() == [400] * 3
    assert ops.score_rows(logits.half()).token.tolist() == [400] * 3


@pytest.mark.ops("score_rows")
def test_only_the_stats_asked_for(backend: str) -> None:
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(20, 3000, generator=generator)
    everything = ops.score_rows(logits, temperature=0.6, seeds=3)
    for stats in ((), ("logp",), ("logp_T",), ("margin", "entropy"), ("entropy",), ("logp", "margin")):
        some = ops.score_rows(logits, temperature=0.6, seeds=3, stats=stats)
        assert torch.equal(some.token, everything.token)
        for name in ("logp", "logp_T", "margin", "entropy"):
            value = getattr(some, name)
            if name in stats:
                torch.testing.assert_close(value, getattr(everything, name), rtol=0, atol=0)
            else:
                assert value is None
