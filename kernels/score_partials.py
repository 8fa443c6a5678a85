"""`score_partials`: the statistics of every row and tile, one program a tile (see `tile`)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdlm_fast.kernels.row_logits import (
    NEG_INF,
    Candidates,
    RowLogits,
    excludes_any,
    forbidden_argument,
    forbidden_columns,
    reads_vectors,
)
from mdlm_fast.kernels.rows import LOG2_E, TILE, row_layout, row_offset
from mdlm_fast.kernels.tile import exponent_scale, tile_statistics

FIELDS: tl.constexpr = tl.constexpr(8)  # of one tile's record
MARGIN, ENTROPY = 8, 16  # bits of `stats`


@triton.jit(do_not_specialize=["num_forbidden", "limit", "tiles_per_program"])
def score_partials_kernel(
    logits,  # [N, V] or [B, L, V], columns of stride 1
    rows_per_batch,
    batch_stride,
    row_stride,
    width,
    rows,  # int32 [C], -1 = padding
    row_sequence,  # int32 [C]
    temperature,  # f32 [B]
    forbidden,  # int64 [num_forbidden] or uint8 [V or more] or None
    num_forbidden,
    vocab_start,
    limit,  # columns from here on are no candidates
    guidance,  # as logits, or None
    guidance_rows_per_batch,
    guidance_batch_stride,
    guidance_row_stride,
    guidance_rows,  # int32 [C] or None
    conditional_scale,
    guidance_scale,
    pivots,  # f32 [C]: the statistics are tempered, of the candidates from the pivot up; or None
    partials,  # f32 [C, tiles, 8]
    tiles,
    tiles_per_program,
    NORMALIZE_ALL: tl.constexpr,
    TEMPERED: tl.constexpr,
    SECOND: tl.constexpr,
    MOMENT: tl.constexpr,
    MOMENT_TEMPERED: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """A program a run of tiles of one row.

    TEMPERED: `rest` is that of the tempered normaliser. Without pivots, rows at temperature 1 are then left out: what
    they need is in the partials that are not tempered.
    """
    runs = tl.cdiv(tiles, tiles_per_program)
    program = tl.program_id(0)
    slot = program // runs
    first_tile = (program - slot * runs) * tiles_per_program
    last_tile = tl.minimum(first_tile + tiles_per_program, tiles)
    field = tl.arange(0, FIELDS)
    record = partials + slot.to(tl.int64) * tiles * FIELDS + field  # [8]
    row_index = tl.load(rows + slot)
    if row_index < 0:
        ids = tl.where((field == 1) | (field == 3), -1, 0).to(tl.float32, bitcast=True)
        nothing = tl.where((field == 0) | (field == 2) | (field == 4), NEG_INF, ids)
        for tile in range(first_tile, last_tile):
            tl.store(record + tile * FIELDS, nothing)
    else:
        guidance_row = None
        if guidance is not None:
            guidance_row = guidance + row_offset(
                tl.load(guidance_rows + slot), guidance_rows_per_batch, guidance_batch_stride, guidance_row_stride
            )
        row = logits + row_offset(row_index, rows_per_batch, batch_stride, row_stride)
        source = RowLogits(row, guidance_row, conditional_scale, guidance_scale, width)
        candidates = Candidates(forbidden, num_forbidden, vocab_start, limit)
        listed = forbidden_columns(candidates)
        pivot = None
        if pivots is not None:
            pivot = tl.load(pivots + slot)
        tempered_scale = exponent_scale(tl.load(temperature + tl.load(row_sequence + slot)))
        exponent = tempered_scale if TEMPERED else LOG2_E
        if TEMPERED and pivots is None:
            last_tile = tl.where(tempered_scale == LOG2_E, first_tile, last_tile)
        # As a reduction, which the compiler knows to be the same for all threads: the branch on it stays simple.
        two_scales = tl.max((tl.zeros((32,), tl.float32) + tempered_scale != exponent).to(tl.int32), 0)
        for tile in range(first_tile, last_tile):
            first = tile * TILE
            excluded = excludes_any(first, candidates, listed)
            normaliser = tile_statistics(
                source,
                candidates,
                first,
                pivot,
                excluded,
                exponent,
                tempered_scale,
                two_scales,
                NORMALIZE_ALL,
                SECOND,
                MOMENT,
                MOMENT_TEMPERED,
                ALIGNED,
            )
            best, best_column, second, mass = normaliser.top, normaliser.column, normaliser.second, normaliser.mass
            if NORMALIZE_ALL:  # noqa: SIM102
                if excluded != 0:
                    allowed = tile_statistics(
                        source,
                        candidates,
                        first,
                        pivot,
                        excluded,
                        tempered_scale,
                        tempered_scale,
                        0,
                        False,
                        SECOND,
                        False,
                        False,
                        ALIGNED,
                    )
                    best, best_column, second, mass = allowed.top, allowed.column, allowed.second, allowed.mass
            top_id = tl.where(normaliser.top == NEG_INF, -1, vocab_start + normaliser.column)
            best_id = tl.where(best == NEG_INF, -1, vocab_start + best_column)
            value = tl.where(field == 0, normaliser.top, best)  # [8]
            value = tl.where(field == 4, second, value)
            value = tl.where(field == 5, normaliser.rest, value)
            value = tl.where(field == 6, mass, value)
            value = tl.where(field == 7, normaliser.moment, value)
            ids = tl.where(field == 1, top_id, best_id).to(tl.float32, bitcast=True)
            tl.store(record + tile * FIELDS, tl.where((field == 1) | (field == 3), ids, value))


def tiles_per_program(rows: int, tiles: int, device: torch.device) -> int:
    """A program's start costs as much as a quarter of a tile, so it takes several where there are enough for all."""
    if device.type != "cuda":
        return tiles
    programs = 64 * torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(rows * tiles // programs, 8, tiles))


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
    pivots: Tensor | None = None,
    tempered: bool = False,
) -> Tensor:
    """See `mdlm_fast.ops.score_partials`: f32 [C, tiles, 8].

    Args:
        pivots: f32 [C]; candidates below their row's are removed.
        tempered: field 5 and the moment are those of the tempered normaliser; without pivots, undefined for rows at
            temperature 1.
    """
    width = logits.shape[-1]
    tiles = triton.cdiv(width, TILE.value)
    partials = torch.empty((rows.numel(), tiles, FIELDS.value), dtype=torch.float32, device=logits.device)
    if not partials.numel():
        return partials
    forbidden, num_forbidden = forbidden_argument(forbidden_ids, vocab_start, width)
    guided = guidance_logits is not None and guidance_scale != 0.0
    guidance = guidance_logits if guided else None
    run = tiles_per_program(partials.shape[0], tiles, logits.device)
    score_partials_kernel[(partials.shape[0] * triton.cdiv(tiles, run),)](
        logits,
        *row_layout(logits),
        width,
        rows,
        row_sequence,
        temperature,
        forbidden,
        num_forbidden,
        vocab_start,
        max(min(vocab_limit - vocab_start, width), 0),
        guidance,
        *(row_layout(guidance) if guidance is not None else (1, 0, 0)),
        guidance_rows if guided else None,
        guidance_scale + 1.0,
        guidance_scale,
        pivots,
        partials,
        tiles,
        run,
        NORMALIZE_ALL=normalize_all,
        TEMPERED=tempered,
        SECOND=bool(stats & MARGIN),
        MOMENT=bool(stats & ENTROPY),
        MOMENT_TEMPERED=stats_tempered,
        ALIGNED=reads_vectors(logits) and (guidance is None or reads_vectors(guidance)),
        num_warps=1,
        enable_fp_fusion=not guided,  # guidance is rounded as written, or near ties would differ between backends
    )
    return partials
