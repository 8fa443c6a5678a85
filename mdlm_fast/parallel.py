"""Scoring rows whose vocabulary is sharded over processes (tensor parallelism): same tokens, ties and draws.

Each process reads its own columns once and shares what it found, 32 bytes for each 2048 columns. The chosen tile of a
sampled row is read again by the process that has it, and the others take its answer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mdlm_fast import ops
from mdlm_fast.ops import RowScores
from mdlm_fast.ops._schemas import PARTIAL_FIELDS, TILE

_PARTIAL_ARGUMENTS = (
    "row_sequence",
    "temperature",
    "forbidden_ids",
    "vocab_limit",
    "normalize_over",
    "stats",
    "stats_from",
)


def score_rows_sharded(
    logits: Tensor,
    rows: Tensor,
    *,
    vocab_start: int,
    vocab_stop: int,
    group: dist.ProcessGroup | None = None,
    **options: Any,
) -> RowScores:
    """`ops.score_rows` with the columns of the logits spread over the processes of a group.

    Args:
        logits: [N, V] or [B, L, V], V the whole vocabulary, of which this process has written columns vocab_start ...
            vocab_stop - 1; the others are never looked at. A head writes its shard in place:
            ``torch.mm(hidden, weight_shard.t(), out=logits[:, vocab_start:vocab_stop])``.
        rows: int32 [C], the same on every process.
        vocab_start: a multiple of 2048, so that no tile is split. The shards of the group cover the vocabulary.
        options: as for `ops.score_rows`, the same on every process; no guidance, top_k or top_p, which look at a whole
            row, and no normalize_over="all" with tempered statistics, which does so too.

    Returns:
        RowScores, the same on every process and equal to those of the whole rows.

    Raises:
        ValueError: an option that needs whole rows, or vocab_start is not a multiple of 2048; else as `ops.score_rows`.
    """
    for name in ("guidance_logits", "guidance_rows", "top_k", "top_p"):
        if options.get(name) is not None:
            raise ValueError(
                f"score_rows_sharded: {name} needs whole rows of logits; leave it out or gather the shards"
            )
    stats = options.get("stats", ("token", "logp", "logp_T", "margin", "entropy"))
    tempered = "logp_T" in stats or options.get("stats_from") == "tempered"
    if options.get("normalize_over") == "all" and tempered:
        raise ValueError(
            "score_rows_sharded: normalize_over='all' with logp_T or stats_from='tempered' needs whole rows of logits; "
            "ask for raw statistics or gather the shards"
        )
    width = logits.shape[-1]
    if vocab_stop != width and vocab_stop % TILE:
        raise ValueError(f"score_rows_sharded: vocab_stop={vocab_stop} must be a multiple of {TILE} or V={width}")
    arguments = {name: options[name] for name in _PARTIAL_ARGUMENTS if name in options}
    arguments.setdefault("vocab_limit", width)
    own = ops.score_partials(logits[..., vocab_start:vocab_stop], rows, vocab_start=vocab_start, **arguments)
    # Every tile is one process's alone and zero elsewhere, so a sum of bit patterns puts them together exactly.
    tiles = -(-width // TILE)
    partials = torch.zeros((rows.shape[0], tiles, PARTIAL_FIELDS), dtype=torch.int32, device=rows.device)
    first = vocab_start // TILE
    partials[:, first : first + own.shape[1]] = own.view(torch.int32)
    dist.all_reduce(partials, group=group)
    scores = ops.finish_scores(partials.view(torch.float32), rows, logits=logits, **options)
    return _of_owners(scores, vocab_start, vocab_stop, group)


def _of_owners(scores: RowScores, vocab_start: int, vocab_stop: int, group: dist.ProcessGroup | None) -> RowScores:
    """Each row's scores from the process whose columns hold its token. Rows without a token agree everywhere."""
    token = scores.token
    ours = ((token >= vocab_start) & (token < vocab_stop)) | (token < 0)
    merged: list[Any] = []
    for value in scores:
        if value is not None:
            value = torch.where(
                ours, value, torch.full_like(value, -torch.inf if value.is_floating_point() else -(2**62))
            )
            dist.all_reduce(value, op=dist.ReduceOp.MAX, group=group)
        merged.append(value)
    return RowScores(*merged)
