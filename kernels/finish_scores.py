"""`finish_scores`: from the statistics of the tiles to token, log-probs, margin and entropy; one program a row.

The maths is that of `ops/reference/_tiles.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdlm_fast.kernels.filter_pivot import filter_pivot
from mdlm_fast.kernels.merge import best_two, load_field, log1p, merge, one_minus_exp
from mdlm_fast.kernels.philox import uniform
from mdlm_fast.kernels.row_logits import NEG_INF, Candidates, RowLogits, forbidden_argument
from mdlm_fast.kernels.rows import EMPTY_ROW, INF_ROW, NAN_ROW, PADDING_ROW, TILE, row_layout, row_offset
from mdlm_fast.kernels.sampling import draw
from mdlm_fast.kernels.score_partials import ENTROPY, MARGIN, score_partials
from mdlm_fast.kernels.tile import SMALLEST_TEMPERATURE, exponent_scale

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

LOGP, LOGP_T = 2, 4  # bits of `stats`
TOKEN_STREAM: tl.constexpr = tl.constexpr(0)  # `mdlm_fast.rng.STREAMS`


@triton.jit(do_not_specialize=["num_forbidden", "limit"])
def finish_scores_kernel(
    partials,  # f32 [C, tiles, 8]
    tempered_partials,  # f32 [C, tiles, 8] of the tempered and filtered distribution, or None: `partials` have it
    tiles,
    logits,  # [N, V] or [B, L, V], columns of stride 1; None unless SAMPLE
    rows_per_batch,
    batch_stride,
    row_stride,
    width,
    rows,  # int32 [C], -1 = padding
    row_sequence,  # int32 [C]
    row_position,  # int32 [C]
    temperature,  # f32 [B]
    seeds,  # int64 [B]
    step,  # int32 [1] or [B]
    step_stride,  # 0 or 1
    forbidden,  # int64 [num_forbidden] or uint8 [V or more] or None
    num_forbidden,
    limit,  # columns from here on are no candidates
    guidance,  # as logits, or None
    guidance_rows_per_batch,
    guidance_batch_stride,
    guidance_row_stride,
    guidance_rows,  # int32 [C] or None
    conditional_scale,
    guidance_scale,
    pivots,  # f32 [C] or None
    token,  # int64 [C]
    logp,  # f32 [C] or None, as the rest
    logp_tempered,
    margin,
    entropy,
    SAMPLE: tl.constexpr,
    SHAPE_TEMPERED: tl.constexpr,
    TILES: tl.constexpr,
):
    """SHAPE_TEMPERED: margin and entropy are those of the tempered and filtered distribution."""
    slot = tl.program_id(0).to(tl.int64)
    row_index = tl.load(rows + slot)
    if row_index < 0:
        tl.store(token + slot, PADDING_ROW)
        if logp is not None:
            tl.store(logp + slot, NEG_INF)
        if logp_tempered is not None:
            tl.store(logp_tempered + slot, NEG_INF)
        if margin is not None:
            tl.store(margin + slot, 0.0)
        if entropy is not None:
            tl.store(entropy + slot, 0.0)
    else:
        tile = tl.arange(0, TILES)
        raw = partials + slot * tiles * 8
        top = load_field(raw, 0, tile, tiles, NEG_INF)  # [TILES]
        best, best_tile, second = best_two(raw, tile, tiles)
        code = tl.where(best == NEG_INF, EMPTY_ROW, 0)
        code = tl.where(tl.max(top, 0) == float("inf"), INF_ROW, code)
        code = tl.where(tl.max((top != top).to(tl.int32), 0) > 0, NAN_ROW, code)

        sequence = tl.load(row_sequence + slot)
        row_temperature = tl.load(temperature + sequence)
        unit = tl.where(row_temperature > 0.0, row_temperature, 1.0)
        inverse_temperature = 1.0 / tl.maximum(unit, SMALLEST_TEMPERATURE).to(tl.float64)
        tempered = raw
        rest_field = 6  # of the tempered normaliser, which is that of the candidates
        if tempered_partials is not None:
            rest_field = 5
            if pivots is not None:
                tempered = tempered_partials + slot * tiles * 8
            else:
                if unit != 1.0:
                    tempered = tempered_partials + slot * tiles * 8

        ids = load_field(raw, 3, tile, tiles, 0.0).to(tl.int32, bitcast=True)
        chosen = tl.sum(tl.where(tile == best_tile, ids, 0), 0)
        logit = best
        if SAMPLE:  # noqa: SIM102
            if (row_temperature > 0.0) & (code == 0):
                pivot = None
                if pivots is not None:
                    pivot = tl.load(pivots + slot)
                guidance_row = None
                if guidance is not None:
                    guidance_row = guidance + row_offset(
                        tl.load(guidance_rows + slot),
                        guidance_rows_per_batch,
                        guidance_batch_stride,
                        guidance_row_stride,
                    )
                row = logits + row_offset(row_index, rows_per_batch, batch_stride, row_stride)
                zero = tl.zeros((1,), tl.int32)
                seed = tl.load(seeds + sequence + zero)  # [1]
                position = tl.load(row_position + slot + zero)
                row_step = tl.load(step + sequence * step_stride + zero)
                chosen, drawn = draw(
                    RowLogits(row, guidance_row, conditional_scale, guidance_scale, width),
                    Candidates(forbidden, num_forbidden, 0, limit),
                    pivot,
                    load_field(tempered, 2, tile, tiles, NEG_INF).to(tl.float64),
                    load_field(tempered, 3, tile, tiles, -1.0).to(tl.int32, bitcast=True),
                    load_field(tempered, 6, tile, tiles, 0.0).to(tl.float64),
                    tl.sum(uniform(seed, position, row_step, TOKEN_STREAM), 0),
                    inverse_temperature,
                    exponent_scale(row_temperature),
                    tile,
                )
                logit = drawn.to(tl.float64)
        tl.store(token + slot, tl.where(code == 0, chosen, code).to(tl.int64))

        nan = tl.where(code == 0, 0.0, float("nan"))  # added to every statistic: a bad row has none
        if logp is not None:
            maximum, rest, _ = merge(raw, tile, tiles, 5, 1.0)
            tl.store(logp + slot, (logit - maximum - log1p(rest) + nan).to(tl.float32))
        if logp_tempered is not None:
            maximum, rest, _ = merge(tempered, tile, tiles, rest_field, inverse_temperature)
            value = (logit - maximum) * inverse_temperature - log1p(rest)
            tl.store(logp_tempered + slot, (value + nan).to(tl.float32))
        if margin is not None or entropy is not None:
            if SHAPE_TEMPERED:
                maximum, rest, moment = merge(tempered, tile, tiles, rest_field, inverse_temperature)
                best, best_tile, second = best_two(tempered, tile, tiles)
            else:
                maximum, rest, moment = merge(raw, tile, tiles, 5, 1.0)
                inverse_temperature = 1.0
            if margin is not None:
                top_two = tl.exp((best - maximum) * inverse_temperature)
                top_two = top_two * one_minus_exp((second - best) * inverse_temperature)
                tl.store(margin + slot, (top_two / (1.0 + rest) + nan).to(tl.float32))
            if entropy is not None:
                value = log1p(rest) - moment / (1.0 + rest)
                tl.store(entropy + slot, (tl.maximum(value, 0.0) + nan).to(tl.float32))


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
    """See `mdlm_fast.ops.finish_scores`; `hidden`, `weight` and `bias` are not read. logits: None where nothing is read
    again: neither a draw, nor a filter, nor a tempered normaliser over all ids."""
    count, device = rows.numel(), partials.device
    token = torch.empty(count, dtype=torch.int64, device=device)
    outputs = [
        torch.empty(count if stats & bit else 0, dtype=torch.float32, device=device)
        for bit in (LOGP, LOGP_T, MARGIN, ENTROPY)
    ]
    if not count:
        return token, *outputs
    filtered = top_k > 0 or top_p < 1.0
    tempered = bool(stats & LOGP_T) or (stats_tempered and bool(stats & (MARGIN | ENTROPY)))
    source = (forbidden_ids, guidance_logits, guidance_rows, guidance_scale)
    pivots = tempered_partials = None
    if (filtered and (tempered or sample)) or (normalize_all and tempered):  # the partials do not have these statistics
        assert logits is not None
        if filtered:
            pivots = filter_pivot(partials, logits, rows, row_sequence, temperature, *source, vocab_limit, top_k, top_p)
        tempered_partials = score_partials(
            logits,
            rows,
            row_sequence,
            temperature,
            *source,
            0,
            vocab_limit,
            normalize_all,
            True,
            stats if stats_tempered else 0,
            pivots,
            tempered=True,
        )
    tiles = partials.shape[1]
    width = tiles * TILE.value if logits is None else logits.shape[-1]
    forbidden, num_forbidden = forbidden_argument(forbidden_ids, 0, width) if sample else (None, 0)
    guided = sample and guidance_logits is not None and guidance_scale != 0.0
    guidance = guidance_logits if guided else None
    none = (1, 0, 0)
    finish_scores_kernel[(rows.numel(),)](
        partials,
        tempered_partials,
        tiles,
        logits if sample else None,
        *(none if logits is None else row_layout(logits)),
        width,
        rows,
        row_sequence,
        row_position,
        temperature,
        seeds,
        step,
        int(step.numel() > 1),
        forbidden,
        num_forbidden,
        min(vocab_limit, width),
        guidance,
        *(none if guidance is None else row_layout(guidance)),
        guidance_rows if guided else None,
        guidance_scale + 1.0,
        guidance_scale,
        pivots,
        token,
        *(output if output.numel() else None for output in outputs),
        SAMPLE=sample,
        SHAPE_TEMPERED=stats_tempered,
        TILES=triton.next_power_of_2(tiles),
        num_warps=4,
        enable_fp_fusion=not guided,
    )
    return token, *outputs
