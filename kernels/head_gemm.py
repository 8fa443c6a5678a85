"""LM-head GEMM with the statistics of its logits in the epilogue: no logits in memory unless asked for.

A program multiplies a block of hidden rows with 128 rows of the weight (a part; 16 parts are a canonical tile of 2048
ids), rounds the logits to the input dtype as F.linear would, and writes each row's statistics of that part. A second
kernel merges the parts of each tile one after the other. So few rows keep all of a GPU busy, and many rows have the
same order of summation. The programs of one part of the weight run together: it comes from memory once.

Order of summation in a part: 32 columns by `tl.sum`, then the next 32. Maxima come first, so that the sums know theirs
and a slice of the block at a time is all that they hold in registers.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdlm_fast.kernels.row_logits import NEG_INF, Candidates, exclude, forbidden_argument
from mdlm_fast.kernels.rows import LN_2, LOG2_E, TILE, row_layout, row_offset
from mdlm_fast.kernels.tile import LEAST_EXPONENT, TileStatistics, exponent_scale, merge_statistics

PART: tl.constexpr = tl.constexpr(128)  # columns of one program
PARTS: tl.constexpr = tl.constexpr(TILE.value // PART.value)  # of a tile
SLICES: tl.constexpr = tl.constexpr(4)  # of a part
NO_COLUMN: tl.constexpr = tl.constexpr(TILE.value)
PART_FIELDS: tl.constexpr = tl.constexpr(6)  # maximum, its id, runner-up, sum, tempered sum, moment
TILE_FIELDS: tl.constexpr = tl.constexpr(8)
DEPTH = 64  # of one step along H
GROUP_ROWS = 4096  # that share one passage over the weight, and the memory of their parts' statistics (0.1 GB)
MERGED_ROWS = 128  # a program of the second kernel
INTERPRETED: tl.constexpr = tl.constexpr(bool(triton.knobs.runtime.interpret))  # its dot takes bf16 for integers


@triton.jit
def column_slice(block, k):
    """Columns [64 i + 16 k, 64 i + 16 k + 16) of a block [rows, PART]: [rows, PART / 4].

    These bits of a column number lie within a thread in every layout of the tensor cores, so nothing moves.
    """
    block = tl.permute(tl.reshape(block, (block.shape[0], PART // 64, 2, 2, 16)), (0, 1, 4, 2, 3))
    even, odd = tl.split(block)
    low, high = tl.split(tl.where(k % 2 == 0, even, odd))
    return tl.reshape(tl.where(k // 2 == 0, low, high), (block.shape[0], PART // SLICES))


@triton.jit
def load_temperature_scale(temperature, temperature_stride, row_sequence, score, live):
    """log2(e) / T of scores [rows]: T of their sequences, or without sequences their own (stride 1) or all's (0)."""
    at = score * temperature_stride
    if row_sequence is not None:
        at = tl.load(row_sequence + score, mask=live, other=0)
    return exponent_scale(tl.load(temperature + at, mask=live, other=1.0))


@triton.jit(do_not_specialize=["num_rows", "num_forbidden", "limit", "slices"])
def head_gemm_kernel(
    hidden,  # [N, H] or [B, L, H]: bf16 or f16
    rows_per_batch,
    batch_stride,
    row_stride,
    weight,  # [V, H]
    weight_stride,
    weight_column_stride,
    bias,  # [V] or None
    width,
    depth,
    rows,  # int32 [C], -1 = padding
    num_rows,
    row_sequence,  # int32 [C] or None
    temperature,  # f32 [B]; without row_sequence [C] or [1]
    temperature_stride,
    forbidden,  # int64 [num_forbidden] or uint8 [V] or None
    num_forbidden,
    limit,  # columns from here on are no candidates
    targets,  # int64 [C] or None; with targets, the sum at temperature 1 and the runner-up are left out
    target_logits,  # f32 [C] or None
    logits,  # [C, V] or None
    logits_stride,
    parts,  # f32 [parts, 6, C], or None: logits alone are asked for
    slices,  # SLICES; known at run time only, or the loop would be unrolled into registers
    MOMENT_TEMPERED: tl.constexpr,
    WHOLE_DEPTH: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    row_blocks = tl.cdiv(num_rows, ROWS)
    part = tl.program_id(0) // row_blocks
    score = (tl.program_id(0) - part * row_blocks) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    row = tl.load(rows + score, mask=score < num_rows, other=-1)
    live = row >= 0
    first = part * PART
    column = tl.arange(0, PART)
    inside = column < width - first
    at_depth = tl.arange(0, DEPTH)

    # Padding reads row 0, columns behind the end the last one: their logits are computed and not used.
    offset = row_offset(tl.maximum(row, 0), rows_per_batch, batch_stride, row_stride)
    hidden_at = hidden + offset[:, None] + at_depth[None, :]
    weight_offset = tl.minimum(first + column, width - 1).to(tl.int64) * weight_stride
    weight_at = weight + weight_offset[None, :] + at_depth[:, None] * weight_column_stride
    product = tl.zeros((ROWS, PART), tl.float32)
    if bias is not None:
        product += tl.load(bias + first + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    for start in range(0, depth, DEPTH):
        if WHOLE_DEPTH:
            x = tl.load(hidden_at)  # [ROWS, DEPTH]
            w = tl.load(weight_at)  # [DEPTH, PART]
        else:
            x = tl.load(hidden_at, mask=at_depth[None, :] < depth - start, other=0.0)
            w = tl.load(weight_at, mask=at_depth[:, None] < depth - start, other=0.0)
        if INTERPRETED:
            x, w = x.to(tl.float32), w.to(tl.float32)
        product = tl.dot(x, w, product)
        hidden_at += DEPTH
        weight_at += DEPTH * weight_column_stride
    rounded = product.to(hidden.dtype.element_ty)
    if logits is not None:
        at = logits + score.to(tl.int64)[:, None] * logits_stride + (first + column)[None, :]
        tl.store(at, rounded, mask=live[:, None] & inside[None, :])

    if parts is not None:
        candidates = Candidates(forbidden, num_forbidden, 0, limit)
        allowed = exclude(tl.zeros((1, PART), tl.float32), first, column[None, :], 0, candidates) == 0.0
        z = tl.where(allowed, rounded.to(tl.float32), NEG_INF)
        top = tl.max(z, 1)
        top_column = tl.min(tl.where(z == top[:, None], column[None, :], NO_COLUMN), 1)
        record = parts + part.to(tl.int64) * PART_FIELDS * num_rows + score
        tl.store(record + num_rows, (first + top_column).to(tl.float32, bitcast=True), mask=live)
        if targets is None:
            second = tl.max(tl.where(column[None, :] == top_column[:, None], NEG_INF, z), 1)
            tl.store(record + 2 * num_rows, second, mask=live)
        else:
            target = (tl.load(targets + score, mask=live, other=-1) - first).to(tl.int32)
            found = live & (target >= 0) & (target < PART) & (target < width - first)
            logit = tl.max(tl.where(column[None, :] == target[:, None], z, NEG_INF), 1)
            tl.store(target_logits + score, logit, mask=found)

        scale = load_temperature_scale(temperature, temperature_stride, row_sequence, score, live)  # [ROWS]
        center = tl.where(
            tl.abs(top) == float("inf"), 0.0, top
        )  # inf - inf is never formed: a sum is NaN where a logit is
        rest = tl.zeros((ROWS,), tl.float32)
        mass = tl.zeros((ROWS,), tl.float32)
        moment = tl.zeros((ROWS,), tl.float32)
        for k in range(slices):
            d = column_slice(z, k) - center[:, None]
            others = column_slice(column[None, :], k) != top_column[:, None]
            exponent = d * scale[:, None]
            e = tl.exp2(exponent)
            mass += tl.sum(tl.where(others, e, 0.0), 1)
            if targets is None:
                plain_exponent = d * LOG2_E
                plain_e = tl.exp2(plain_exponent)
                rest += tl.sum(tl.where(others, plain_e, 0.0), 1)
                if not MOMENT_TEMPERED:
                    exponent = plain_exponent
                    e = plain_e
            moment += LN_2 * tl.sum(e * tl.maximum(exponent, LEAST_EXPONENT), 1)
        tl.store(record, tl.where(mass == mass, top, float("nan")), mask=live)
        tl.store(record + 3 * num_rows, rest, mask=live)
        tl.store(record + 4 * num_rows, mass, mask=live)
        tl.store(record + 5 * num_rows, moment, mask=live)


@triton.jit(do_not_specialize=["num_rows"])
def merge_parts_kernel(
    parts,  # f32 [parts, 6, C]
    num_parts,
    rows,  # int32 [C], -1 = padding
    num_rows,
    row_sequence,  # int32 [C] or None
    temperature,  # f32 [B]; without row_sequence [C] or [1]
    temperature_stride,
    partials,  # f32 [C, tiles, 8], written
    MOMENT_TEMPERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0)
    score = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = score < num_rows
    live = tl.load(rows + score, mask=inside, other=-1) >= 0
    scale = load_temperature_scale(temperature, temperature_stride, row_sequence, score, live)
    top = tl.full((BLOCK,), NEG_INF, tl.float32)
    top_id = tl.full((BLOCK,), -1, tl.int32)
    second = top
    rest = tl.zeros((BLOCK,), tl.float32)
    mass = rest
    moment = rest
    record = parts + tile.to(tl.int64) * PARTS * PART_FIELDS * num_rows + score
    for _ in range(tl.minimum(PARTS, num_parts - tile * PARTS)):
        later = TileStatistics(
            tl.load(record, mask=live, other=NEG_INF),
            tl.load(record + num_rows, mask=live, other=0.0).to(tl.int32, bitcast=True),
            tl.load(record + 2 * num_rows, mask=live, other=NEG_INF),
            tl.load(record + 3 * num_rows, mask=live, other=0.0),
            tl.load(record + 4 * num_rows, mask=live, other=0.0),
            tl.load(record + 5 * num_rows, mask=live, other=0.0),
        )
        earlier = TileStatistics(top, top_id, second, rest, mass, moment)
        merged = merge_statistics(earlier, later, LOG2_E, scale, MOMENT_TEMPERED)
        top, top_id, second = merged.top, merged.column, merged.second
        rest, mass, moment = merged.rest, merged.mass, merged.moment
        record += PART_FIELDS * num_rows
    record = partials + (score.to(tl.int64) * tl.num_programs(0) + tile) * TILE_FIELDS
    id_bits = top_id.to(tl.float32, bitcast=True)
    tl.store(record, top, mask=inside)
    tl.store(record + 1, id_bits, mask=inside)
    tl.store(record + 2, top, mask=inside)
    tl.store(record + 3, id_bits, mask=inside)
    tl.store(record + 4, second, mask=inside)
    tl.store(record + 5, rest, mask=inside)
    tl.store(record + 6, mass, mask=inside)
    tl.store(record + 7, moment, mask=inside)


def row_groups(count: int, limit: int | None = None) -> Iterator[slice]:
    """Slices of at most GROUP_ROWS, and at most `limit`, of `count` rows; one empty slice where there are none."""
    size = GROUP_ROWS if limit is None else max(1, min(limit, GROUP_ROWS))
    return (slice(first, min(first + size, count)) for first in range(0, max(count, 1), size))


def head_partials(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    row_sequence: Tensor | None,
    temperature: Tensor,
    forbidden_ids: Tensor | None,
    vocab_limit: int,
    moment_tempered: bool,
    targets: Tensor | None = None,
    logits: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(the score_partials of F.linear(hidden[rows], weight, bias), the logits at `targets`).

    Args:
        hidden: bf16 or f16 [N, H] or [B, L, H], last stride 1; weight: [V, H], any strides; bias: [V], contiguous.
        rows: int32 [C], -1 = padding.
        row_sequence: int32 [C], indices into temperature; None: temperature has [1] or [C].
        targets: int64 [C]; with them, fields 4 and 5 (runner-up and sum at temperature 1) mean nothing.
        logits: [C, V], last stride 1, written if given, but for padding.

    Returns:
        (f32 [C, tiles, 8], f32 [C] or None: -inf where the target is not allowed). The candidates are the normaliser.
    """
    count, width = rows.numel(), weight.shape[0]
    num_parts, tiles = triton.cdiv(width, PART.value), triton.cdiv(width, TILE.value)
    parts = torch.empty((num_parts, PART_FIELDS.value, count), dtype=torch.float32, device=hidden.device)
    partials = torch.empty((count, tiles, TILE_FIELDS.value), dtype=torch.float32, device=hidden.device)
    target_logits = None
    if targets is not None:
        target_logits = torch.full((count,), float("-inf"), dtype=torch.float32, device=hidden.device)
    if not count:
        return partials, target_logits
    per_row = (row_sequence, temperature, 1 if row_sequence is None and temperature.numel() > 1 else 0)
    forbidden = (*forbidden_argument(forbidden_ids, 0, width), min(vocab_limit, width))
    _multiply(hidden, weight, bias, rows, logits, *per_row, *forbidden, targets, target_logits, parts, moment_tempered)
    merge_parts_kernel[(tiles, triton.cdiv(count, MERGED_ROWS))](
        parts,
        num_parts,
        rows,
        count,
        *per_row,
        partials,
        MOMENT_TEMPERED=moment_tempered,
        BLOCK=MERGED_ROWS,
        num_warps=4,
    )
    return partials, target_logits


def head_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear(hidden, weight, bias), rounded as the statistics of `head_partials` see it: [N, V] with aligned rows."""
    count, width = hidden.shape[0], weight.shape[0]
    logits = hidden.new_empty((count, -(-width // 16) * 16))[:, :width]
    if count:
        rows = torch.arange(count, dtype=torch.int32, device=hidden.device)
        _multiply(hidden, weight, bias, rows, logits)
    return logits


def _multiply(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    logits: Tensor | None,
    row_sequence: Tensor | None = None,
    temperature: Tensor | None = None,
    temperature_stride: int = 0,
    forbidden: Tensor | None = None,
    num_forbidden: int = 0,
    limit: int = 0,
    targets: Tensor | None = None,
    target_logits: Tensor | None = None,
    parts: Tensor | None = None,
    moment_tempered: bool = False,
) -> None:
    count, (width, depth) = rows.numel(), weight.shape
    few = count <= 64  # rows; the weight's way from memory is the bound then
    row_block = 64 if few else 128
    head_gemm_kernel[(triton.cdiv(width, PART.value) * triton.cdiv(count, row_block),)](
        hidden,
        *row_layout(hidden),
        weight,
        *weight.stride(),
        bias,
        width,
        depth,
        rows,
        count,
        row_sequence,
        temperature,
        temperature_stride,
        forbidden,
        num_forbidden,
        limit,
        targets,
        target_logits,
        logits,
        0 if logits is None else logits.stride(0),
        parts,
        SLICES.value,
        MOMENT_TEMPERED=moment_tempered,
        WHOLE_DEPTH=depth % DEPTH == 0,
        ROWS=row_block,
        DEPTH=DEPTH,
        num_warps=4 if few else 8,
        num_stages=4 if few else 3,
    )
