"""Statistics of one tile of 2048 columns of a row, as `ops/reference/_tiles.py` defines them.

A program of one warp reads a tile as a block [vectors, 8] (4 columns a vector in fp32): a thread's vector is one
16-byte load and all reductions over it stay in registers. What belongs to a single column is found through its vector:
the maximum of each vector, then the first vector that holds the tile's maximum, whose few columns are read again (they
are in cache) to find the column. So the sum without the maximum's own 1 costs nothing per column: the sum of every
other vector, plus that of the chosen vector taken again without its maximum.

Order of summation: the columns of a vector, then the vectors, by `tl.sum` with one warp, then the chosen vector. It
depends on the dtype alone.

For another kernel: `tile_statistics` does all of this for a tile in memory, `merge_statistics` puts statistics of two
sets of columns together. Sums are in fp32; exponents are `(z - maximum) * scale`, where `scale` is log2(e) / T.
"""

import os
from typing import NamedTuple

import triton
import triton.language as tl

from mdlm_fast.kernels.row_logits import NEG_INF, read_columns_apart, read_set, restrict
from mdlm_fast.kernels.rows import LN_2, LOG2_E, TILE

LEAST_EXPONENT: tl.constexpr = tl.constexpr(-200.0)  # exp2 of it is 0 in fp32; keeps -inf * 0 out of the moment
LARGEST_SHIFT: tl.constexpr = tl.constexpr(4194304.0)  # 2**22: top * scale is then rounded by at most 1/4
INTERPRETING: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"))
SMALLEST_TEMPERATURE: tl.constexpr = tl.constexpr(1e-30)  # its inverse is finite


class TileStatistics(NamedTuple):
    """Of a set of columns; scalars for a tile, [rows] for a block."""

    top: tl.tensor  # f32, the maximum; -inf if the set is empty, NaN if it holds one
    column: tl.tensor  # int32, the first column that has it; meaningless if top is not finite
    second: tl.tensor  # f32, the maximum without that column; -inf if not asked for
    rest: tl.tensor  # f32, sum of exp2((z - top) * scale) without that column
    mass: tl.tensor  # f32, the same at tempered_scale
    moment: tl.tensor  # f32, sum of (z - top) exp(z - top), or the tempered one; 0 if not asked for


@triton.jit
def exponent_scale(temperature):
    """log2(e) / T of an f32 scalar or block; T = 0 stands for 1."""
    unit = tl.where(temperature > 0.0, temperature, 1.0)
    return LOG2_E / tl.maximum(unit, SMALLEST_TEMPERATURE)


@triton.jit
def multiply_add(z, own, top, scale):
    """z * scale + c and own * scale + c, rounded once, with c = -top * scale rounded, and what c lost by that."""
    shift = -(top * scale)
    if INTERPRETING:  # the interpreter has no fused instruction
        wide = scale.to(tl.float64)
        exponent = (z.to(tl.float64) * wide + shift).to(tl.float32)
        own_exponent = (own.to(tl.float64) * wide + shift).to(tl.float32)
        lost = (top.to(tl.float64) * wide + shift).to(tl.float32)
    else:
        exponent = tl.fma(z, scale, shift)
        own_exponent = tl.fma(own, scale, shift)
        lost = tl.fma(top, scale, shift)
    return exponent, own_exponent, lost


@triton.jit
def finite(top):
    """What exponents are taken from: 0 for an infinite maximum, since inf - inf would be NaN."""
    return tl.where(tl.abs(top) == float("inf"), 0.0, top)


@triton.jit
def exponential_sums(z, own, chosen, top, scale, MOMENT: tl.constexpr):
    """Sum of exp2((z - top) * scale) without the maximum, and the moment in nats.

    One multiply-add per column forms the exponent. What the rounding of top * scale lost is the same for every column,
    so the sums are corrected by it instead of the columns.

    Args:
        z: f32 [vectors, vector].
        own: f32 [vector], the chosen vector with -inf for the maximum itself.
        chosen: bool [vectors], which vector that is.
        top: f32, finite; |top| * scale below LARGEST_SHIFT.
    """
    exponent, own_exponent, lost = multiply_add(z, own, top, scale)
    e = tl.exp2(exponent)
    own_e = tl.exp2(own_exponent)
    correction = tl.exp2(-lost)
    rest = tl.sum(tl.where(chosen, tl.sum(own_e, 0), tl.sum(e, 1)), 0)
    moment = tl.full((), 0.0, tl.float32)
    if MOMENT:
        terms = tl.sum(e * tl.maximum(exponent, LEAST_EXPONENT), 1)
        own_terms = tl.sum(own_e * tl.maximum(own_exponent, LEAST_EXPONENT), 0)
        moment = LN_2 * correction * (tl.sum(tl.where(chosen, own_terms, terms), 0) - lost * rest)
    return rest * correction, moment


@triton.jit
def tile_statistics(
    row,
    candidates,
    first,
    pivot,
    excluded,
    scale,
    tempered_scale,
    two_scales,
    KEEP: tl.constexpr,
    SECOND: tl.constexpr,
    MOMENT: tl.constexpr,
    MOMENT_TEMPERED: tl.constexpr,
    ALIGNED: tl.constexpr = True,
):
    """Read the tile that starts at column `first` (int32) and return its TileStatistics. For programs of one warp.

    Args:
        row, candidates: RowLogits and Candidates.
        pivot, excluded, KEEP: see `restrict`.
        scale, tempered_scale: f32.
        two_scales: int32, 0 where the two are equal and the exponentials are computed once.
        MOMENT_TEMPERED: the moment is taken at tempered_scale.
        ALIGNED: rows start at multiples of 16 bytes (see `reads_vectors`).
    """
    VECTOR: tl.constexpr = 128 // row.logits.dtype.element_ty.primitive_bitwidth
    VECTORS: tl.constexpr = TILE // VECTOR
    vector = tl.arange(0, VECTORS)
    element = tl.arange(0, VECTOR)
    base = vector[:, None] * VECTOR  # [vectors, 1]
    if ALIGNED:
        if first + TILE <= row.width:
            z = read_set(row, candidates, first, base, element[None, :], pivot, excluded, KEEP, False)
        else:
            z = read_set(row, candidates, first, base, element[None, :], pivot, excluded, KEEP, True)
    else:
        z = read_columns_apart(row, first, vector * VECTOR, VECTOR)
        z = restrict(z, first, base, element[None, :], candidates, pivot, excluded, KEEP)

    vector_top = tl.max(z, 1)  # [vectors]
    top = tl.max(vector_top, 0)
    at = tl.min(tl.where(vector_top == top, vector, VECTORS - 1), 0)
    chosen = vector == at  # [vectors]
    own = read_set(row, candidates, first, at * VECTOR, element, pivot, excluded, KEEP, True)  # [vector]
    place = tl.min(tl.where(own == top, element, VECTOR - 1), 0)
    own = tl.where(element == place, NEG_INF, own)
    second = tl.full((), NEG_INF, tl.float32)
    if SECOND:
        second = tl.maximum(tl.max(tl.where(chosen, NEG_INF, vector_top), 0), tl.max(own, 0))

    reference = finite(top)
    while tl.abs(reference) * tl.maximum(scale, tempered_scale) >= LARGEST_SHIFT:  # at most once; rare, so no `if`
        z = z - reference
        own = own - reference
        reference = 0.0
    rest, moment = exponential_sums(z, own, chosen, reference, scale, MOMENT)
    mass = rest
    if two_scales != 0:
        mass, tempered_moment = exponential_sums(z, own, chosen, reference, tempered_scale, MOMENT and MOMENT_TEMPERED)
        if MOMENT_TEMPERED:
            moment = tempered_moment
    top = tl.where(rest != rest, float("nan"), top)  # exponentials are not negative: only a NaN makes their sum NaN
    return TileStatistics(top, first + at * VECTOR + place, second, rest, mass, moment)


@triton.jit
def merge_statistics(a, b, scale, tempered_scale, MOMENT_TEMPERED: tl.constexpr):
    """TileStatistics of two sets of columns, those of `a` before those of `b`; [rows] each."""
    first = (a.top >= b.top) | (a.top != a.top)  # NaN stays
    top = tl.where(first, a.top, b.top)
    lower = tl.where(first, b.top, a.top)
    gap = tl.where(lower == NEG_INF, NEG_INF, lower - top)  # two empty sets: both -inf
    shift = tl.exp2(gap * scale)
    tempered_shift = tl.exp2(gap * tempered_scale)
    lower_rest = tl.where(first, b.rest, a.rest)
    lower_mass = tl.where(first, b.mass, a.mass)
    rest = tl.where(first, a.rest, b.rest) + shift * (1.0 + lower_rest)
    mass = tl.where(first, a.mass, b.mass) + tempered_shift * (1.0 + lower_mass)
    exponent = gap * scale
    weight = shift
    count = 1.0 + lower_rest
    if MOMENT_TEMPERED:
        exponent = gap * tempered_scale
        weight = tempered_shift
        count = 1.0 + lower_mass
    exponent = LN_2 * tl.maximum(exponent, LEAST_EXPONENT)
    moment = tl.where(first, a.moment, b.moment) + weight * (tl.where(first, b.moment, a.moment) + exponent * count)
    second = tl.where(first, tl.maximum(a.second, b.top), tl.maximum(b.second, a.top))
    return TileStatistics(top, tl.where(first, a.column, b.column), second, rest, mass, moment)
