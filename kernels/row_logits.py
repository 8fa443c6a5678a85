"""What a kernel reads from a row: logits in fp32 with guidance applied, and which ids are candidates.

Columns are those of the tensor at hand, a shard of the vocabulary whose column 0 has the global id `start`. Device
functions work on blocks of any shape; pointers of a row are made with `rows.row_offset`.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdlm_fast.kernels.rows import TILE, row_layout

LARGEST_SPAN = 8192  # columns that a kernel reads at a time, from a multiple of their number on
LIST_LIMIT: tl.constexpr = tl.constexpr(64)  # more forbidden ids than this are read as a mask over the columns
NEG_INF: tl.constexpr = tl.constexpr(float("-inf"))


class RowLogits(NamedTuple):
    """One row on the device: z = scale * logits - guidance_scale * guidance, or the logits where guidance is None."""

    logits: tl.tensor  # pointer to column 0: f32, bf16 or f16
    guidance: tl.tensor | None  # pointer to column 0, of the same dtype
    scale: tl.tensor  # f32, guidance_scale + 1 rounded once
    guidance_scale: tl.tensor  # f32
    width: tl.tensor  # columns of the row


class Candidates(NamedTuple):
    """The ids that may be chosen, on the device: columns below `limit` that are not forbidden."""

    # Pointer: int64 [count], global ids, as given; or uint8 [multiple of LARGEST_SPAN above the width], 1 = forbidden.
    forbidden: tl.tensor | None
    count: tl.tensor  # length of the list; 0 with a mask
    start: tl.tensor  # global id of column 0
    limit: tl.tensor  # columns from here on are no candidates; at most the width


@triton.jit
def _unpack(value):
    """A loaded block in fp32. As integers a pair of bf16 is unpacked by one instruction each; `.to` takes three."""
    if value.dtype == tl.bfloat16:
        return (value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return value.to(tl.float32)


@triton.jit
def read_logits(row, first, base, element, MASKED: tl.constexpr):
    """z in fp32 at columns first + base + element; -inf behind the row's end, which only MASKED reads may pass.

    `first` is an int32 scalar, the others are int32 blocks that broadcast. Kept apart, they cost a thread a few
    registers in what happens rarely, not one per column.
    """
    if MASKED:
        live = base + element < row.width - first
        z = _unpack(tl.load(row.logits + first + (base + element), mask=live, other=NEG_INF))
        if row.guidance is not None:
            guidance = _unpack(tl.load(row.guidance + first + (base + element), mask=live, other=0.0))
    else:
        z = _unpack(tl.load(row.logits + first + (base + element)))
        if row.guidance is not None:
            guidance = _unpack(tl.load(row.guidance + first + (base + element)))
    if row.guidance is not None:
        # An id at -inf stays there: -inf - (-inf) would refuse the row for NaN.
        z = tl.where(z == NEG_INF, z, row.scale * z - row.guidance_scale * guidance)
    return z


@triton.jit
def exclude(z, first, base, element, candidates):
    """z with -inf at the columns first + base + element that are no candidates."""
    z = tl.where(base < candidates.limit - first - element, z, NEG_INF)
    if candidates.forbidden is not None:
        if candidates.forbidden.dtype.element_ty == tl.int64:
            for k in range(candidates.count):
                column = (tl.load(candidates.forbidden + k) - candidates.start).to(tl.int32)
                z = tl.where(base == column - first - element, NEG_INF, z)
        else:
            z = tl.where(tl.load(candidates.forbidden + first + (base + element)) != 0, NEG_INF, z)
    return z


@triton.jit
def read_columns_apart(row, first, base, VECTOR: tl.constexpr):
    """z at the VECTOR columns from each first + base on ([vectors, VECTOR]; base [vectors]), for rows that no load can
    read 16 bytes at a time. A thread holds what it holds of other rows, so that sums have the same bits.
    """
    if VECTOR == 4:
        z = tl.join(
            tl.join(read_logits(row, first, base, 0, True), read_logits(row, first, base, 2, True)),
            tl.join(read_logits(row, first, base, 1, True), read_logits(row, first, base, 3, True)),
        )
    else:
        even = tl.join(
            tl.join(read_logits(row, first, base, 0, True), read_logits(row, first, base, 4, True)),
            tl.join(read_logits(row, first, base, 2, True), read_logits(row, first, base, 6, True)),
        )
        odd = tl.join(
            tl.join(read_logits(row, first, base, 1, True), read_logits(row, first, base, 5, True)),
            tl.join(read_logits(row, first, base, 3, True), read_logits(row, first, base, 7, True)),
        )
        z = tl.join(even, odd)
    return tl.reshape(z, (base.shape[0], VECTOR))


@triton.jit
def restrict(z, first, base, element, candidates, pivot, excluded, KEEP: tl.constexpr):
    """z with -inf for ids outside of a set: the candidates, or all ids that the pivot leaves (KEEP).

    Args:
        first, base, element: as of `read_logits`.
        pivot: f32, candidates below it are removed from either set; or None.
        excluded: int32 from `excludes_any`; 0 says that all columns are candidates.
    """
    if KEEP:
        if pivot is not None:
            candidate = z
            if excluded != 0:
                candidate = exclude(z, first, base, element, candidates)
            z = tl.where((candidate > NEG_INF) & (candidate < pivot), NEG_INF, z)
    else:
        if excluded != 0:
            z = exclude(z, first, base, element, candidates)
        if pivot is not None:
            z = tl.where(z >= pivot, z, NEG_INF)
    return z


@triton.jit
def read_set(row, candidates, first, base, element, pivot, excluded, KEEP: tl.constexpr, MASKED: tl.constexpr):
    """`read_logits` of a set: see `restrict`."""
    z = read_logits(row, first, base, element, MASKED)
    return restrict(z, first, base, element, candidates, pivot, excluded, KEEP)


@triton.jit
def forbidden_columns(candidates):
    """int32 [LIST_LIMIT] for `excludes_any`: the columns of the list, -1 where there is none."""
    columns = tl.full((LIST_LIMIT,), -1, tl.int32)
    if candidates.forbidden is not None:  # noqa: SIM102
        if candidates.forbidden.dtype.element_ty == tl.int64:
            index = tl.arange(0, LIST_LIMIT)
            ids = tl.load(candidates.forbidden + index, mask=index < candidates.count, other=-1)
            columns = tl.where(ids >= candidates.start, ids - candidates.start, -1).to(tl.int32)
    return columns


@triton.jit
def excludes_any(first, candidates, columns, SPAN: tl.constexpr = TILE):
    """Whether the SPAN columns from `first` on may hold one that is no candidate: int32, 0 if not.

    `columns` is from `forbidden_columns`, which a program calls once.
    """
    found = first + SPAN > candidates.limit
    if candidates.forbidden is not None:
        if candidates.forbidden.dtype.element_ty == tl.int64:
            found = tl.max(((columns >= first) & (columns < first + SPAN) | found).to(tl.int32), 0)
        else:
            found = 1
    return found


def forbidden_argument(forbidden_ids: Tensor | None, start: int, width: int) -> tuple[Tensor | None, int]:
    """What `Candidates.forbidden` points to, and its count, for int64 [K] global ids, unsorted, that may repeat.

    A kernel compares every column of a tile with every id of a short list; a long one becomes a mask over the columns
    start ... start + width - 1, made on the device.
    """
    if forbidden_ids is None or forbidden_ids.numel() <= LIST_LIMIT.value:
        return forbidden_ids, 0 if forbidden_ids is None else forbidden_ids.numel()
    column = forbidden_ids - start
    column = torch.where((column >= 0) & (column < width), column, width)  # ids of other shards: behind the end
    mask = torch.zeros(triton.cdiv(width + 1, LARGEST_SPAN) * LARGEST_SPAN, dtype=torch.uint8, device=column.device)
    return mask.index_fill_(0, column, 1), 0


def reads_vectors(tensor: Tensor) -> bool:
    """Whether the compiler knows every row of [N, V] or [B, L, V] to start at a multiple of 16 bytes: it looks at the
    address and at the strides in elements, and whether 16 divides them."""
    _, batch_stride, row_stride = row_layout(tensor)
    return tensor.data_ptr() % 16 == 0 and batch_stride % 16 == 0 and row_stride % 16 == 0
