"""What the scoring ops mean: candidates, normalisers, filters, guidance, layouts, padding, partial results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracles import RowOracle

from mdlm_fast import ops

TOLERANCE = {"rtol": 2e-6, "atol": 2e-6}


def check(scores: ops.RowScores, logits: torch.Tensor, stats_from: str = "raw", **arguments: Any) -> None:
    """Every statistic of every row, given the tokens the op chose."""
    tempered = stats_from == "tempered"
    exact = [RowOracle(row, **arguments) for row in logits.double().numpy()]
    tokens = scores.token.tolist()
    if arguments.get("temperature", 0.0) == 0.0:
        assert tokens == [o.greedy for o in exact]
    for o, token in zip(exact, tokens, strict=True):
        assert o.kept[token] and o.z[token] > -np.inf
    pairs = list(zip(exact, tokens, strict=True))
    np.testing.assert_allclose(scores.logp, [o.log_probs(False)[t] for o, t in pairs], **TOLERANCE)
    np.testing.assert_allclose(scores.logp_T, [o.log_probs(True)[t] for o, t in pairs], **TOLERANCE)
    np.testing.assert_allclose(scores.margin, [o.margin(tempered) for o in exact], **TOLERANCE)
    np.testing.assert_allclose(scores.entropy, [o.entropy(tempered) for o in exact], rtol=5e-6, atol=5e-6)


def random_logits(seed: int, rows: int = 12, width: int = 4500, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.ops("score_rows")
@pytest.mark.parametrize("normalize_over", ("allowed", "all"))
@pytest.mark.parametrize("stats_from", ("raw", "tempered"))
@pytest.mark.parametrize("temperature", (0.0, 0.6))
def test_trap_n10_forbidden_ids_and_vocab_limit(
    backend: str, normalize_over: str, stats_from: str, temperature: float
) -> None:
    logits = random_logits(1, rows=3)
    logits[:, 4200] = 20.0  # above the limit
    logits[:, 17] = 18.0  # forbidden
    several = [17, 0, 2048, 4100, 4499]
    for forbidden, limit in (([17], None), ([], 4200), (several, 4200), ([17], 4096), (several, 2047), ([17], 18)):
        scores = ops.score_rows(
            logits,
            temperature=temperature,
            seeds=3,
            forbidden_ids=forbidden,
            vocab_limit=limit,
            normalize_over=normalize_over,
            stats_from=stats_from,
        )
        check(
            scores,
            logits,
            stats_from,
            temperature=temperature,
            forbidden=tuple(forbidden),
            vocab_limit=limit,
            normalize_all=normalize_over == "all",
        )


@pytest.mark.ops("score_rows")
@pytest.mark.parametrize("normalize_over", ("allowed", "all"))
@pytest.mark.parametrize("stats_from", ("raw", "tempered"))
@pytest.mark.parametrize("temperature", (0.0, 1.0, 0.7))
def test_trap_s7_filters_change_the_tempered_distribution_only(
    backend: str, normalize_over: str, stats_from: str, temperature: float
) -> None:
    logits = random_logits(2, rows=3, width=2500)
    for top_k, top_p in ((5, 1.0), (0, 0.8), (3, 0.95), (4000, 0.3), (1, 1.0), (0, 1e-9), (10**6, 0.999)):
        scores = ops.score_rows(
            logits,
            temperature=temperature,
            seeds=4,
            top_k=top_k,
            top_p=top_p,
            forbidden_ids=[9, 10],
            normalize_over=normalize_over,
            stats_from=stats_from,
        )
        check(
            scores,
            logits,
            stats_from,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            forbidden=(9, 10),
            normalize_all=normalize_over == "all",
        )


@pytest.mark.ops("score_rows")
@pytest.mark.parametrize("top_k,top_p,kept", ((2, 1.0, 4), (1, 1.0, 1), (4, 1.0, 4), (5, 1.0, 3000), (0, 0.5, 4)))
def test_filters_keep_ties_with_the_pivot(backend: str, top_k: int, top_p: float, kept: int) -> None:
    logits = torch.full((1, 3000), -40.0)
    logits[0, 2500] = 2.0
    logits[0, [5, 2047, 2900]] = 1.5
    scores = ops.score_rows(logits, top_k=top_k, top_p=top_p, stats_from="tempered")
    expected = torch.cat([torch.tensor([2.0, 1.5, 1.5, 1.5]), torch.full((2996,), -40.0)])[:kept]
    torch.testing.assert_close(scores.logp_T[0], expected.double().log_softmax(0)[0].float())
    check(scores, logits, "tempered", top_k=top_k, top_p=top_p)


@pytest.mark.ops("score_rows")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("scale", (0.0, 0.5, 4.0))
def test_trap_n8_guidance_is_combined_in_fp32_before_everything(backend: str, dtype: torch.dtype, scale: float) -> None:
    conditional, unconditional = random_logits(3).to(dtype), random_logits(4).to(dtype)
    rows = torch.tensor([7, 2, -1, 11, 0], dtype=torch.int32)
    guidance_rows = torch.tensor([1, 2, -1, 0, 5], dtype=torch.int32)
    scores = ops.score_rows(
        conditional,
        rows,
        temperature=0.8,
        seeds=1,
        top_k=50,
        forbidden_ids=[3],
        guidance_logits=unconditional,
        guidance_rows=guidance_rows,
        guidance_scale=scale,
    )
    keep = rows >= 0
    c = conditional[rows[keep].long()].float()
    u = unconditional[guidance_rows[keep].long()].float()
    combined = (scale + 1) * c - scale * u
    check(ops.RowScores(*(x[keep] for x in scores)), combined, temperature=0.8, top_k=50, forbidden=(3,))
    default_rows = ops.score_rows(conditional, guidance_logits=unconditional, guidance_scale=scale)
    assert torch.equal(
        default_rows.token, ((scale + 1) * conditional.float() - scale * unconditional.float()).argmax(-1)
    )


@pytest.mark.ops("score_rows")
@pytest.mark.parametrize("scale", (0.0, 1.5))
def test_an_id_without_mass_stays_so_under_guidance(backend: str, scale: float) -> None:
    conditional, unconditional = random_logits(5), random_logits(6)
    conditional[:, 4] = unconditional[:, 4] = -torch.inf
    scores = ops.score_rows(conditional, guidance_logits=unconditional, guidance_scale=scale)
    combined = (scale + 1) * conditional - scale * unconditional
    combined[:, 4] = -torch.inf
    check(scores, combined)


@pytest.mark.ops("score_rows")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_trap_l2_any_layout(backend: str, dtype: torch.dtype) -> None:
    """Sliced sequences, a padded vocabulary, odd row strides, transposed and strided columns all read the same rows."""
    generator = torch.Generator().manual_seed(9)
    wide = torch.randn(3, 12, 2051 * 2, generator=generator).to(dtype)
    column_major = wide.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    layouts = (
        wide[:, -5:],
        wide[:, -5:, :2051],
        wide[:, 2:7, 3:2050],
        wide[:, -5:, ::2],
        wide[:, ::2],
        wide.transpose(0, 1)[1:6],
        column_major[:, -5:],
        wide[1, :, 1:2050],
        wide[:, 4],
        wide[:, :1].expand(3, 6, -1),
        wide.to(torch.float64)[:, -3:],
    )
    for logits in layouts:
        flat = logits.reshape(-1, logits.shape[-1]).contiguous()
        rows = torch.randperm(flat.shape[0], generator=generator)[:6].to(torch.int32)
        rows[1] = -1
        if logits.dtype == torch.float64 and "reference" not in ops.available_backends("score_rows"):
            continue
        scores = _as_float64_allowed(logits, rows)
        expected = _as_float64_allowed(flat, rows)
        assert torch.equal(scores.token, expected.token)
        assert torch.equal(scores.logp, expected.logp) and torch.equal(scores.entropy, expected.entropy)
        assert scores.token[1] == -1 and scores.logp[1] == -np.inf and scores.logp_T[1] == -np.inf
        assert scores.margin[1] == 0 and scores.entropy[1] == 0


def _as_float64_allowed(logits: torch.Tensor, rows: torch.Tensor) -> ops.RowScores:
    if logits.dtype == torch.float64:  # only the reference reads float64
        with ops.use_backend("reference"):
            return ops.score_rows(logits, rows)
    return ops.score_rows(logits, rows)


@pytest.mark.ops("score_rows")
def test_trap_l7_empty_inputs(backend: str) -> None:
    for logits, rows in (
        (torch.randn(4, 10), torch.empty(0, dtype=torch.int32)),
        (torch.randn(0, 10), None),
        (torch.randn(2, 0, 10), None),
        (torch.randn(0, 10), torch.tensor([-1, -1], dtype=torch.int32)),
        (torch.randn(3, 10), torch.tensor([-1, -1], dtype=torch.int64)),
    ):
        scores = ops.score_rows(logits, rows, temperature=0.5, seeds=1)
        count = 0 if rows is None else rows.numel()
        assert scores.token.tolist() == [-1] * count and scores.logp.shape == (count,)


@pytest.mark.ops("score_rows")
def test_temperature_and_step_per_sequence(backend: str) -> None:
    """Rows look up their own sequence: temperature, seed and step; greedy and sampled rows mix."""
    generator = torch.Generator().manual_seed(11)
    logits = torch.randn(3, 8, 700, generator=generator)
    temperature = torch.tensor([0.0, 0.5, 2.0])
    seeds = torch.tensor([5, -6, 7])
    steps = torch.tensor([3, 1, 4], dtype=torch.int32)
    rows = torch.randperm(24, generator=generator).to(torch.int32)
    together = ops.score_rows(logits, rows, temperature=temperature, seeds=seeds, step=steps, stats_from="tempered")
    for slot, row in enumerate(rows.tolist()):
        b = row // 8
        alone = ops.score_rows(
            logits[b],
            torch.tensor([row % 8], dtype=torch.int32),
            temperature=temperature[b : b + 1],
            seeds=seeds[b : b + 1],
            step=int(steps[b]),
            stats_from="tempered",
        )
        for name in ("token", "logp", "logp_T", "margin", "entropy"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[slot]), (name, row)
    assert torch.equal(together.token[rows < 8], logits[0].argmax(-1)[rows[rows < 8].long()])


@pytest.mark.ops("score_rows")
def test_trap_n7_rows_beyond_2_to_the_31_elements(backend: str) -> None:
    """Row 2 starts past 2^31 elements; an expanded tensor reaches there without the memory."""
    width = 1100
    storage = torch.randn(width, generator=torch.Generator().manual_seed(15))
    logits = storage.as_strided((3, 1, width), (0, 0, 1)).expand(3, 2_000_000, width)
    rows = torch.tensor([5_999_999, 0], dtype=torch.int32)
    scores = ops.score_rows(logits, rows)
    assert scores.token.tolist() == [int(storage.argmax())] * 2
    assert scores.logp[0] == scores.logp[1]
