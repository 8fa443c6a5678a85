"""LM-head GEMM with the statistics of its logits in the epilogue: no logits in memory unless asked for.

A program multiplies a block of hidden rows with 128 rows of the weight (a part; 16 parts are a canonical tile of 2048
ids), rounds the logits to the input dtype as F.linear would, and writes each row's statistics of that part. A second
kernel (`head_partials`) merges the parts of each tile one after the other. So few rows keep all of a GPU busy, and many
rows have the same order of summation. The programs of one part of the weight run together: it comes from memory once.

Meant for few rows (mdlm_fast/ops/_triton.py says how many): then the weight's way from memory is the bound, and this
reads it as fast as a library does. For many rows a library's GEMM is faster by more than the logits cost.

Order of summation in a part: 32 columns by `tl.sum`, then the next 32. Maxima come first, so that the sums know theirs
and a slice of the block at a time is all that they hold in registers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdlm_fast.kernels.row_logits import NEG_INF, Candidates, exclude
from mdlm_fast.kernels.rows import LN_2, LOG2_E, TILE, row_layout, row_offset
from mdlm_fast.kernels.tile import LEAST_EXPONENT, exponent_scale

PART: tl.constexpr = tl.constexpr(128)  # columns of one program
PARTS: tl.constexpr = tl.constexpr(TILE.value // PART.value)  # of a tile
SLICES: tl.constexpr = tl.constexpr(4)  # of a part
NO_COLUMN: tl.constexpr = tl.constexpr(TILE.value)
PART_FIELDS: tl.constexpr = tl.constexpr(6)  # maximum, its id, runner-up, sum, tempered sum, moment
DEPTH = 64  # of one step along H
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
        # inf - inf is never formed, so that a sum is NaN only where a logit is.
        center = tl.where(tl.abs(top) == float("inf"), 0.0, top)
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


def head_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear(hidden, weight, bias), rounded as the statistics of `head_partials` see it: [N, V] with aligned rows."""
    count, width = hidden.shape[0], weight.shape[0]
    logits = hidden.new_empty((count, -(-width // 16) * 16))[:, :width]
    if count:
        rows = torch.arange(count, dtype=torch.int32, device=hidden.device)
        multiply(hidden, weight, bias, rows, logits)
    return logits


def multiply(
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
    """Launch the kernel on its arguments; what is not asked for stays None."""
    count, (width, depth) = rows.numel(), weight.shape
    row_block = 16 if count <= 16 else 64
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
        num_warps=4,
        num_stages=4,
    )
