"""The smallest logit that top-k and top-p keep, without sorting: a search over the bits of the answer.

Floats are ordered like the unsigned integers `ordered key` (csrc/common/ordered_key.h). Top-k counts among what top-p
keeps and both keep ties, so the pivot is the largest number v such that at least k candidates, or at least the share p
of their mass, lie at v or above. That holds for all smaller numbers too, so the key is found bit by bit from the top,
one pass over the row each: 16 for bf16, whose lower bits are 0, 19 for fp16, 32 for fp32 and guided rows.

Masses are summed per lane over the passes' blocks in fp32, lanes in fp64, in an order that depends on the width alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdlm_fast.kernels.row_logits import (
    LARGEST_SPAN,
    Candidates,
    RowLogits,
    excludes_any,
    forbidden_argument,
    forbidden_columns,
    read_set,
)
from mdlm_fast.kernels.rows import TILE, row_layout, row_offset
from mdlm_fast.kernels.tile import SMALLEST_TEMPERATURE, exponent_scale

KEY_OF_LOWEST: tl.constexpr = tl.constexpr(0x00800000)  # of -FLT_MAX
SIGN: tl.constexpr = tl.constexpr(0x80000000)


@triton.jit
def from_key(key):
    """The float of an ordered key (uint32 block)."""
    return tl.where(key >= SIGN, key ^ SIGN, ~key).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["num_forbidden", "limit", "top_k", "top_p"])
def filter_pivot_kernel(
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
    limit,  # columns from here on are no candidates
    guidance,  # as logits, or None
    guidance_rows_per_batch,
    guidance_batch_stride,
    guidance_row_stride,
    guidance_rows,  # int32 [C] or None
    conditional_scale,
    guidance_scale,
    partials,  # f32 [C, tiles, 8]
    tiles,
    top_k,
    top_p,
    pivots,  # f32 [C]
    COUNT: tl.constexpr,
    MASS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    """One program a row. COUNT, MASS: whether top-k and top-p are on."""
    slot = tl.program_id(0).to(tl.int64)
    row_index = tl.load(rows + slot)
    if row_index >= 0:
        guidance_row = None
        if guidance is not None:
            guidance_row = guidance + row_offset(
                tl.load(guidance_rows + slot), guidance_rows_per_batch, guidance_batch_stride, guidance_row_stride
            )
        row = logits + row_offset(row_index, rows_per_batch, batch_stride, row_stride)
        source = RowLogits(row, guidance_row, conditional_scale, guidance_scale, width)
        candidates = Candidates(forbidden, num_forbidden, 0, limit)
        listed = forbidden_columns(candidates)
        row_temperature = tl.load(temperature + tl.load(row_sequence + slot))
        scale = exponent_scale(row_temperature)

        tile = tl.arange(0, TILES)
        record = partials + slot * tiles * 8 + tile * 8  # [tiles]
        tile_best = tl.load(record + 2, mask=tile < tiles, other=float("-inf")).to(tl.float64)
        best = tl.max(tile_best, 0)
        wanted = best
        if MASS:
            tile_mass = tl.load(record + 6, mask=tile < tiles, other=0.0).to(tl.float64)
            unit = tl.where(row_temperature > 0.0, row_temperature, 1.0)
            inverse_temperature = 1.0 / tl.maximum(unit, SMALLEST_TEMPERATURE).to(tl.float64)
            share = (1.0 + tile_mass) * tl.exp((tile_best - best) * inverse_temperature)
            wanted = top_p * tl.sum(share, 0)
        best = best.to(tl.float32)

        element = tl.arange(0, BLOCK)
        prefix = tl.zeros((1,), tl.uint32)
        for place in range(BITS):
            key = prefix | (tl.full((1,), SIGN, tl.uint32) >> place)
            threshold = from_key(key)  # [1]; NaN beyond the infinities, where nothing is kept
            count = tl.zeros((BLOCK,), tl.int32)
            mass = tl.zeros((BLOCK,), tl.float32)
            for first in range(0, width, BLOCK):
                excluded = excludes_any(first, candidates, listed, BLOCK)
                z = read_set(source, candidates, first, 0, element, None, excluded, False, True)
                kept = z >= threshold
                if COUNT:
                    count += kept.to(tl.int32)
                if MASS:
                    mass += tl.where(kept, tl.exp2((z - best) * scale), 0.0)
            if COUNT and MASS:
                enough = (tl.sum(count, 0) >= top_k) | (tl.sum(mass.to(tl.float64), 0) >= wanted)
            elif COUNT:
                enough = tl.sum(count, 0) >= top_k
            else:
                enough = tl.sum(mass.to(tl.float64), 0) >= wanted
            prefix = tl.where(enough, key, prefix)
        pivot = tl.where(prefix < KEY_OF_LOWEST, float("-inf"), from_key(prefix))
        tl.store(pivots + slot + tl.zeros((1,), tl.int32), pivot)


def filter_pivot(
    partials: Tensor,
    logits: Tensor,
    rows: Tensor,
    row_sequence: Tensor,
    temperature: Tensor,
    forbidden_ids: Tensor | None,
    guidance_logits: Tensor | None,
    guidance_rows: Tensor | None,
    guidance_scale: float,
    vocab_limit: int,
    top_k: int,
    top_p: float,
) -> Tensor:
    """f32 [C]: the smallest logit kept, -inf where all are; undefined for padding. Arguments as of `finish_scores`."""
    width = logits.shape[-1]
    pivots = torch.empty(rows.numel(), dtype=torch.float32, device=logits.device)
    forbidden, num_forbidden = forbidden_argument(forbidden_ids, 0, width)
    guided = guidance_logits is not None and guidance_scale != 0.0
    guidance = guidance_logits if guided else None
    bits = 32 if guided else {torch.bfloat16: 16, torch.float16: 19}.get(logits.dtype, 32)
    block = min(LARGEST_SPAN, triton.next_power_of_2(width))
    tiles = triton.cdiv(width, TILE.value)
    filter_pivot_kernel[(rows.numel(),)](
        logits,
        *row_layout(logits),
        width,
        rows,
        row_sequence,
        temperature,
        forbidden,
        num_forbidden,
        min(vocab_limit, width),
        guidance,
        *(row_layout(guidance) if guidance is not None else (1, 0, 0)),
        guidance_rows if guided else None,
        guidance_scale + 1.0,
        guidance_scale,
        partials,
        tiles,
        top_k,
        top_p,
        pivots,
        COUNT=top_k > 0,
        MASS=top_p < 1.0,
        BITS=bits,
        BLOCK=block,
        TILES=triton.next_power_of_2(tiles),
        num_warps=max(1, min(16, block // 512)),
        enable_fp_fusion=not guided,
    )
    return pivots
