"""Reference of `score_rows`, `score_partials` and `linear_score_rows`: one pass over different sources of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from mdlm_fast.ops._schemas import PARTIAL_FIELDS, TILE
from mdlm_fast.ops.reference._rows import LinearRows, LogitRows, RowSource, gather_rows
from mdlm_fast.ops.reference._tiles import allowed_ids, tile_statistics
from mdlm_fast.ops.reference.finish_scores import (
    Outputs,
    RowInputs,
    ScoreOptions,
    pack,
    row_inputs,
    score,
    unit_temperature,
)


def score_partials(
    logits: Tensor,
    rows: Tensor,
    row_sequence: Tensor,
    temperature: Tensor,
    forbidden_ids: Tensor | None,
    guidance_logits: Tensor | None,
    guidance_rows: Tensor | None,
    guidance_scale: float,
    vocab_start: int,
    vocab_limit: int,
    normalize_all: bool,
    stats_tempered: bool,
    stats: int,
) -> Tensor:
    """See `mdlm_fast.ops.score_partials`."""
    index = (rows >= 0).nonzero()[:, 0]
    width = logits.shape[-1]
    source = LogitRows(
        logits,
        rows[index].long(),
        guidance_logits,
        None if guidance_rows is None else guidance_rows[index].long(),
        guidance_scale,
    )
    statistics = tile_statistics(
        source,
        allowed_ids(width, vocab_start, forbidden_ids, vocab_limit, logits.device),
        unit_temperature(temperature[row_sequence[index].long()]),
        normalize_all=normalize_all,
        tempered_moment=stats_tempered,
        start=vocab_start,
    )
    nothing = logits.new_zeros(PARTIAL_FIELDS, dtype=torch.float32)
    nothing[[0, 2, 4]] = float("-inf")
    nothing.view(torch.int32)[[1, 3]] = -1
    partials = nothing.repeat(rows.numel(), -(-width // TILE), 1)
    partials[index] = pack(statistics)
    return partials


def score_rows(
    logits: Tensor,
    rows: Tensor,
    row_sequence: Tensor,
    row_position: Tensor,
    temperature: Tensor,
    seeds: Tensor,
    step: Tensor,
    forbidden_ids: Tensor | None,
    guidance_logits: Tensor | None,
    guidance_rows: Tensor | None,
    guidance_scale: float,
    vocab_limit: int,
    top_k: int,
    top_p: float,
    sample: bool,
    normalize_all: bool,
    stats_tempered: bool,
    stats: int,
) -> Outputs:
    """See `mdlm_fast.ops.score_rows`."""
    inputs = row_inputs(rows, row_sequence, row_position, temperature, seeds, step)
    source = LogitRows(
        logits,
        rows[inputs.index].long(),
        guidance_logits,
        None if guidance_rows is None else guidance_rows[inputs.index].long(),
        guidance_scale,
    )
    options = ScoreOptions(vocab_limit, top_k, top_p, sample, normalize_all, stats_tempered, stats)
    return _score_source(rows.numel(), source, inputs, forbidden_ids, options)


def linear_score_rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    row_sequence: Tensor,
    row_position: Tensor,
    temperature: Tensor,
    seeds: Tensor,
    step: Tensor,
    forbidden_ids: Tensor | None,
    guidance_hidden: Tensor | None,
    guidance_rows: Tensor | None,
    guidance_scale: float,
    vocab_limit: int,
    top_k: int,
    top_p: float,
    sample: bool,
    normalize_all: bool,
    stats_tempered: bool,
    stats: int,
) -> Outputs:
    """See `mdlm_fast.ops.linear_score_rows`: logits are computed a chunk of the vocabulary at a time."""
    inputs = row_inputs(rows, row_sequence, row_position, temperature, seeds, step)
    guidance = None
    if guidance_hidden is not None:
        assert guidance_rows is not None
        guidance = gather_rows(guidance_hidden, guidance_rows[inputs.index].long())
    source = LinearRows(gather_rows(hidden, rows[inputs.index].long()), weight, bias, guidance, guidance_scale)
    options = ScoreOptions(vocab_limit, top_k, top_p, sample, normalize_all, stats_tempered, stats)
    return _score_source(rows.numel(), source, inputs, forbidden_ids, options)


def _score_source(
    capacity: int, source: RowSource, inputs: RowInputs, forbidden_ids: Tensor | None, options: ScoreOptions
) -> Outputs:
    allowed = allowed_ids(source.width, 0, forbidden_ids, options.vocab_limit, inputs.index.device)
    statistics = tile_statistics(
        source,
        allowed,
        unit_temperature(inputs.temperature),
        normalize_all=options.normalize_all,
        tempered_moment=options.stats_tempered,
    )
    return score(capacity, source, allowed, inputs, statistics, options, has_tempered_normaliser=True)
