"""`score_partials`: the statistics of each row and tile, mergeable across vocabulary shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mdlm_fast.ops import _arguments as arguments
from mdlm_fast.ops import _checks as checks
from mdlm_fast.ops._dispatch import call, define
from mdlm_fast.ops._schemas import PARTIAL_FIELDS, TILE
from mdlm_fast.ops.score_rows import ALL_STATS

_OP = "score_partials"


def score_partials(
    logits: Tensor,
    rows: Tensor | None = None,
    *,
    num_rows: Tensor | None = None,
    row_sequence: Tensor | None = None,
    temperature: Tensor | float | None = None,
    forbidden_ids: Tensor | Iterable[int] | int | None = None,
    guidance_logits: Tensor | None = None,
    guidance_rows: Tensor | None = None,
    guidance_scale: float = 0.0,
    vocab_start: int = 0,
    vocab_limit: int | None = None,
    normalize_over: str = "allowed",
    stats: Sequence[str] = ALL_STATS,
    stats_from: str = "raw",
) -> Tensor:
    """Statistics of each canonical tile (2048 global ids) of each row: the first half of `score_rows`.

    Shards of the vocabulary are scored apart and put together with `torch.cat(partials, dim=1)` in order of ids;
    `finish_scores` then gives what `score_rows` gives on the whole rows.

    Args:
        logits: [N, V'] or [B, L, V'], the columns vocab_start ... vocab_start + V' - 1 of the rows.
        num_rows: int32 [1]: rows behind the first num_rows count as padding (`select_commit_` writes it as
            num_next_rows); None = all are given.
        vocab_start: global id of the first column; a multiple of 2048, so that no tile is split between shards.
        vocab_limit: global: ids >= vocab_limit are never candidates; default vocab_start + V'.
        forbidden_ids: global ids.
        Others: see `score_rows`.

    Returns:
        f32 [C, ceil(V' / 2048), 8]: maximum over the normaliser and its id, best candidate and its id, runner-up
        candidate, sum of exponentials without the maximum, candidate mass without the best, entropy moment. Ids are
        int32 bit patterns, -1 = none. Padding rows hold -inf and zeros.

    Raises:
        ValueError: as `score_rows`, or vocab_start is not a multiple of 2048. Bad rows are reported by `finish_scores`.
    """
    checks.check_leading(_OP, "logits", logits)
    if vocab_start < 0 or vocab_start % TILE:
        raise ValueError(f"{_OP}: vocab_start={vocab_start} must be a multiple of {TILE}: cut shards at tile ends")
    leading, device, width = logits.shape[:-1], logits.device, logits.shape[-1]
    row = arguments.row_arguments(_OP, leading, device, rows, row_sequence, None, temperature, None, 0, False)
    indices = row.rows
    if num_rows is not None:
        checks.check_tensor(_OP, "num_rows", num_rows, (1,), (torch.int32,), device)
        indices = torch.where(torch.arange(indices.shape[0], device=device) < num_rows, indices, -1)
    limit = vocab_start + width if vocab_limit is None else vocab_limit
    if limit < 1:
        raise ValueError(f"{_OP}: vocab_limit={vocab_limit} must be at least 1")
    forbidden, _ = arguments.vocabulary_arguments(_OP, width, device, forbidden_ids, None)
    guidance, guidance_index, scale = arguments.guidance_arguments(
        _OP, "guidance_logits", guidance_logits, logits, guidance_rows, indices, guidance_scale
    )
    return _score_partials(
        logits.detach(),
        indices,
        row.row_sequence,
        row.temperature,
        forbidden,
        guidance,
        guidance_index,
        scale,
        vocab_start,
        limit,
        arguments.choice(_OP, "normalize_over", normalize_over, "allowed", "all"),
        arguments.choice(_OP, "stats_from", stats_from, "raw", "tempered"),
        arguments.stats_mask(_OP, stats),
    )


def _run(
    logits: Tensor,
    rows: Tensor,
    row_sequence: Tensor,
    temperature: Tensor,
    forbidden_ids: Tensor | None,
    guidance_logits: Tensor | None,
    guidance_rows: Tensor | None,
    *options: int | float | bool,
) -> Tensor:
    checks.check_range(_OP, "rows", rows, -1, logits.shape[:-1].numel())
    checks.check_range(_OP, "row_sequence", row_sequence, -1, temperature.numel())
    checks.check_range(_OP, "forbidden_ids", forbidden_ids, 0, 1 << 31)
    checks.check_temperature(_OP, temperature)
    logits, rows = arguments.with_unit_stride(logits, rows)
    if guidance_logits is not None and guidance_rows is not None:
        checks.check_range(_OP, "guidance_rows", guidance_rows, -1, guidance_logits.shape[:-1].numel())
        guidance_logits, guidance_rows = arguments.with_unit_stride(guidance_logits, guidance_rows)
    return call(
        _OP, logits, logits, rows, row_sequence, temperature, forbidden_ids, guidance_logits, guidance_rows, *options
    )


def _fake(logits: Tensor, rows: Tensor, *rest: object) -> Tensor:
    tiles = (logits.shape[-1] + TILE - 1) // TILE
    return logits.new_empty((rows.shape[0], tiles, PARTIAL_FIELDS), dtype=torch.float32)


_score_partials = define(_OP, _run, _fake)
