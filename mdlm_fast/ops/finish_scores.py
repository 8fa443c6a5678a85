"""`finish_scores`: from the statistics of the tiles to token, log-probs, margin and entropy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mdlm_fast.ops import _arguments as arguments
from mdlm_fast.ops import _checks as checks
from mdlm_fast.ops._dispatch import call, define
from mdlm_fast.ops._schemas import PARTIAL_FIELDS, TILE
from mdlm_fast.ops.linear_score_rows import check_head
from mdlm_fast.ops.score_rows import ALL_STATS, RowScores, as_row_scores, check_row_values, fake_scores

_OP = "finish_scores"


def finish_scores(
    partials: Tensor,
    rows: Tensor | None = None,
    *,
    logits: Tensor | None = None,
    hidden: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    row_sequence: Tensor | None = None,
    row_position: Tensor | None = None,
    temperature: Tensor | float | None = None,
    seeds: Tensor | int | None = None,
    step: Tensor | int = 0,
    forbidden_ids: Tensor | Iterable[int] | int | None = None,
    vocab_limit: int | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    sample: bool | None = None,
    normalize_over: str = "allowed",
    stats: Sequence[str] = ALL_STATS,
    stats_from: str = "raw",
    guidance_logits: Tensor | None = None,
    guidance_rows: Tensor | None = None,
    guidance_scale: float = 0.0,
) -> RowScores:
    """The second half of `score_rows`. Reads the logits again only where it must: a sampled tile, filters, or ids
    outside the candidates that `normalize_over="all"` keeps in the tempered normaliser.

    Args:
        partials: f32 [C, ceil(V / 2048), 8] from `score_partials` with the same arguments, all tiles of the vocabulary.
        logits: [N, V] or [B, L, V]; or else
        hidden, weight, bias: as in `linear_score_rows`; the columns needed are computed again.
        guidance_logits: as in `score_rows`; with hidden and weight, the unconditional hidden states.
        Others: see `score_rows`.

    Returns, Raises: see `score_rows`.
    """
    if (logits is None) == (hidden is None) or (hidden is None) != (weight is None):
        raise ValueError(f"{_OP}: pass either logits, or hidden and weight")
    if logits is not None:
        checks.check_leading(_OP, "logits", logits)
        like, vocab = logits, logits.shape[-1]
    else:
        assert hidden is not None and weight is not None
        check_head(_OP, hidden, weight, bias)
        like, vocab = hidden, weight.shape[0]
    leading, device = like.shape[:-1], like.device
    row = arguments.row_arguments(
        _OP, leading, device, rows, row_sequence, row_position, temperature, seeds, step, sample
    )
    tiles = (vocab + TILE - 1) // TILE
    checks.check_tensor(_OP, "partials", partials, (row.rows.shape[0], tiles, PARTIAL_FIELDS), (torch.float32,), device)
    forbidden, limit = arguments.vocabulary_arguments(_OP, vocab, device, forbidden_ids, vocab_limit)
    top_k, top_p = arguments.filter_arguments(_OP, top_k, top_p)
    guidance, guidance_index, scale = arguments.guidance_arguments(
        _OP, "guidance_logits", guidance_logits, like, guidance_rows, row.rows, guidance_scale
    )
    mask = arguments.stats_mask(_OP, stats)
    outputs = _finish_scores(
        partials,
        *(None if x is None else x.detach() for x in (logits, hidden, weight)),
        None if bias is None else bias.detach().contiguous(),
        *row[:6],
        forbidden,
        guidance,
        guidance_index,
        scale,
        limit,
        top_k,
        top_p,
        row.sample,
        arguments.choice(_OP, "normalize_over", normalize_over, "allowed", "all"),
        arguments.choice(_OP, "stats_from", stats_from, "raw", "tempered"),
        mask,
    )
    return as_row_scores(outputs, mask)


def _run(
    partials: Tensor,
    logits: Tensor | None,
    hidden: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    rows: Tensor,
    row_sequence: Tensor,
    row_position: Tensor,
    temperature: Tensor,
    seeds: Tensor,
    step: Tensor,
    forbidden_ids: Tensor | None,
    guidance_logits: Tensor | None,
    guidance_rows: Tensor | None,
    *options: int | float | bool,
) -> tuple[Tensor, ...]:
    like = hidden if logits is None else logits
    vocab = weight.shape[0] if logits is None and weight is not None else like.shape[-1] if like is not None else 0
    assert like is not None
    check_row_values(_OP, like.shape[:-1], vocab, rows, row_sequence, temperature, forbidden_ids)
    like, kernel_rows = arguments.with_unit_stride(like, rows)
    if guidance_logits is not None and guidance_rows is not None:
        checks.check_range(_OP, "guidance_rows", guidance_rows, -1, guidance_logits.shape[:-1].numel())
        guidance_logits, guidance_rows = arguments.with_unit_stride(guidance_logits, guidance_rows)
    outputs = call(
        _OP,
        like,
        partials.contiguous(),
        None if logits is None else like,
        None if hidden is None else like,
        weight,
        bias,
        kernel_rows,
        row_sequence,
        row_position,
        temperature,
        seeds,
        step,
        forbidden_ids,
        guidance_logits,
        guidance_rows,
        *options,
    )
    checks.check_tokens(_OP, outputs[0], rows, row_sequence, row_position)
    return outputs


def _fake(partials: Tensor, *rest: object) -> tuple[Tensor, ...]:
    rows, stats = rest[4], rest[-1]
    assert isinstance(rows, Tensor) and isinstance(stats, int)
    return fake_scores(rows, stats)


_finish_scores = define(_OP, _run, _fake)
