"""Reference of `finish_scores`: from tile statistics to token, log-probs, margin and entropy (see `_tiles`)."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from mdlm_fast.ops._schemas import PARTIAL_FIELDS, STAT_BITS
from mdlm_fast.ops.reference._rows import LinearRows, LogitRows, RowSource, gather_rows
from mdlm_fast.ops.reference._sampling import draw, filter_pivot
from mdlm_fast.ops.reference._tiles import (
    Normaliser,
    TileStatistics,
    _maximum,
    _one_hot,
    allowed_ids,
    merge,
    tile_statistics,
)
from mdlm_fast.rng import uniform

_NEG_INF = float("-inf")
Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

#: What a token below -1 means.
NAN_ROW, INF_ROW, EMPTY_ROW = -2, -3, -4


@dataclass(frozen=True)
class ScoreOptions:
    """The scalar arguments that all scoring ops share."""

    vocab_limit: int
    top_k: int
    top_p: float
    sample: bool
    normalize_all: bool
    stats_tempered: bool
    stats: int

    def wants(self, stat: str) -> bool:
        return bool(self.stats & STAT_BITS[stat])

    @property
    def filtered(self) -> bool:
        return self.top_k > 0 or self.top_p < 1.0

    @property
    def needs_tempered(self) -> bool:
        return self.wants("logp_T") or (self.stats_tempered and (self.wants("margin") or self.wants("entropy")))


@dataclass(frozen=True)
class RowInputs:
    """Per-row inputs of the scored rows (padding removed): all [rows]."""

    index: Tensor  # place in the op's output
    temperature: Tensor  # f32, 0 = greedy
    seeds: Tensor  # int64
    position: Tensor  # int32
    step: Tensor  # int32

    def subset(self, at: Tensor) -> RowInputs:
        return RowInputs(**{f.name: getattr(self, f.name)[at] for f in fields(self)})


def row_inputs(
    rows: Tensor, row_sequence: Tensor, row_position: Tensor, temperature: Tensor, seeds: Tensor, step: Tensor
) -> RowInputs:
    """Drop padding and look up what each row's sequence says."""
    index = (rows >= 0).nonzero()[:, 0]
    sequence = row_sequence[index].long()
    steps = step[sequence] if step.numel() > 1 else step.expand(index.numel())
    return RowInputs(index, temperature[sequence], seeds[sequence], row_position[index], steps)


def unit_temperature(temperature: Tensor) -> Tensor:
    """Greedy rows (temperature 0) report and filter the distribution at temperature 1."""
    return torch.where(temperature > 0, temperature, 1.0)


def score(
    capacity: int,
    source: RowSource,
    allowed: Tensor,
    rows: RowInputs,
    statistics: TileStatistics,
    options: ScoreOptions,
    *,
    has_tempered_normaliser: bool,
) -> Outputs:
    """All outputs of a scoring op, padded to `capacity`.

    Args:
        source, rows, statistics: of the same rows, padding removed.
        has_tempered_normaliser: whether `statistics.tempered_rest` is filled in.
    """
    device = allowed.device
    token = torch.full((capacity,), -1, dtype=torch.int64, device=device)
    outputs = {
        name: torch.full((capacity if options.wants(name) else 0,), fill, dtype=torch.float32, device=device)
        for name, fill in (("logp", _NEG_INF), ("logp_T", _NEG_INF), ("margin", 0.0), ("entropy", 0.0))
    }
    if rows.index.numel():
        code = _row_codes(statistics)
        token[rows.index] = code
        for name, output in outputs.items():
            if options.wants(name):
                output[rows.index] = float("nan")
        good = (code == 0).nonzero()[:, 0]
        if good.numel():
            kept = TileStatistics(**{f.name: getattr(statistics, f.name)[good] for f in fields(TileStatistics)})
            results = _score_good_rows(
                source.subset(good), allowed, rows.subset(good), kept, options, has_tempered_normaliser
            )
            token[rows.index[good]] = results.pop("token")
            for name, value in results.items():
                outputs[name][rows.index[good]] = value.float()
    return token, outputs["logp"], outputs["logp_T"], outputs["margin"], outputs["entropy"]


def _row_codes(statistics: TileStatistics) -> Tensor:
    top = statistics.top.amax(1)  # amax passes NaN on
    best = statistics.best.amax(1)
    code = torch.where(best == _NEG_INF, EMPTY_ROW, 0)
    code = torch.where(top == float("inf"), INF_ROW, code)
    return torch.where(top.isnan(), NAN_ROW, code)


def _score_good_rows(
    source: RowSource,
    allowed: Tensor,
    rows: RowInputs,
    statistics: TileStatistics,
    options: ScoreOptions,
    has_tempered_normaliser: bool,
) -> dict[str, Tensor]:
    temperature = unit_temperature(rows.temperature)
    sampled = (rows.temperature > 0).nonzero()[:, 0] if options.sample else rows.index[:0]
    tempered, pivot = statistics, None
    if options.filtered and (options.needs_tempered or sampled.numel()):
        pivot = filter_pivot(source, allowed, temperature, options.top_k, options.top_p)
    if pivot is not None or (options.needs_tempered and not has_tempered_normaliser):
        tempered = tile_statistics(
            source,
            allowed,
            temperature,
            normalize_all=options.normalize_all,
            tempered_moment=options.stats_tempered,
            pivot=pivot,
        )

    best, tile = _maximum(statistics.best)
    token = statistics.best_id.gather(1, tile[:, None])[:, 0]
    logit = best.clone()
    if sampled.numel():
        u = uniform(rows.seeds[sampled], rows.position[sampled], rows.step[sampled], "token")
        kept = TileStatistics(**{f.name: getattr(tempered, f.name)[sampled] for f in fields(TileStatistics)})
        token[sampled], logit[sampled] = draw(
            source.subset(sampled),
            allowed,
            kept,
            temperature[sampled],
            u,
            None if pivot is None else pivot[sampled],
        )

    raw_normaliser = merge(statistics.top, statistics.rest, statistics.moment, None)
    results = {"token": token}
    if options.wants("logp"):
        results["logp"] = (logit.double() - raw_normaliser.top) - raw_normaliser.log_sum
    shape_normaliser, shape_statistics, divisor = raw_normaliser, statistics, torch.ones_like(raw_normaliser.top)
    if options.needs_tempered:
        tempered_normaliser = merge(tempered.top, tempered.tempered_rest, tempered.moment, temperature)
        if options.wants("logp_T"):
            distance = (logit.double() - tempered_normaliser.top) / temperature.double()
            results["logp_T"] = distance - tempered_normaliser.log_sum
        if options.stats_tempered:
            shape_normaliser, shape_statistics, divisor = tempered_normaliser, tempered, temperature.double()
    if options.wants("margin"):
        results["margin"] = _margin(shape_normaliser, shape_statistics, divisor)
    if options.wants("entropy"):
        results["entropy"] = shape_normaliser.entropy.clamp(min=0.0)
    return results


def _margin(normaliser: Normaliser, statistics: TileStatistics, divisor: Tensor) -> Tensor:
    best, tile = _maximum(statistics.best)
    others = torch.where(_one_hot(tile, statistics.best), statistics.second, statistics.best)
    gap = (others.amax(1).double() - best.double()) / divisor
    return ((best.double() - normaliser.top) / divisor).exp() * -torch.expm1(gap) / (1.0 + normaliser.rest)


def pack(statistics: TileStatistics) -> Tensor:
    """f32 [rows, tiles, 8]: max and its id, best candidate and its id, runner-up, rest, candidate mass rest, moment.

    The ids are int32 bit patterns.
    """
    top_id, best_id = (ids.int().view(torch.float32) for ids in (statistics.top_id, statistics.best_id))
    return torch.stack(
        [
            statistics.top,
            top_id,
            statistics.best,
            best_id,
            statistics.second,
            statistics.rest,
            statistics.mass_rest,
            statistics.moment,
        ],
        dim=-1,
    )


def unpack(partials: Tensor) -> TileStatistics:
    """The inverse of `pack`. If only candidates are in the normaliser, its tempered rest is the candidate mass."""
    assert partials.shape[-1] == PARTIAL_FIELDS
    top, top_id, best, best_id, second, rest, mass_rest, moment = (x.contiguous() for x in partials.unbind(-1))
    ids = (x.view(torch.int32).long() for x in (top_id, best_id))
    return TileStatistics(top, next(ids), best, next(ids), second, rest, mass_rest, moment, mass_rest)


def finish_scores(
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
    guidance_scale: float,
    vocab_limit: int,
    top_k: int,
    top_p: float,
    sample: bool,
    normalize_all: bool,
    stats_tempered: bool,
    stats: int,
) -> Outputs:
    """See `mdlm_fast.ops.finish_scores`. With hidden and weight, guidance_logits holds the guidance hidden states."""
    inputs = row_inputs(rows, row_sequence, row_position, temperature, seeds, step)
    picked = rows[inputs.index].long()
    guidance_picked = None if guidance_rows is None else guidance_rows[inputs.index].long()
    source: RowSource
    if logits is not None:
        source = LogitRows(logits, picked, guidance_logits, guidance_picked, guidance_scale)
    else:
        assert hidden is not None and weight is not None
        guidance = None
        if guidance_logits is not None:
            assert guidance_picked is not None
            guidance = gather_rows(guidance_logits, guidance_picked)
        source = LinearRows(gather_rows(hidden, picked), weight, bias, guidance, guidance_scale)
    options = ScoreOptions(vocab_limit, top_k, top_p, sample, normalize_all, stats_tempered, stats)
    allowed = allowed_ids(source.width, 0, forbidden_ids, vocab_limit, partials.device)
    return score(
        rows.numel(),
        source,
        allowed,
        inputs,
        unpack(partials[inputs.index]),
        options,
        has_tempered_normaliser=not normalize_all,
    )
