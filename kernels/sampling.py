"""Drawing one id of a row by inverse CDF: a tile by the tiles' masses, then a column of that tile alone.

The rule is that of `ops/reference/_sampling.py`: fp64 prefix sums in order of ids (`tl.cumsum`, whose order depends on
the number of tiles alone), the first above the target, else the last with mass.
"""

import triton
import triton.language as tl

from mdlm_fast.kernels.row_logits import NEG_INF, read_set
from mdlm_fast.kernels.rows import TILE

BEYOND: tl.constexpr = tl.constexpr(2147483647)  # above every index


@triton.jit
def first_above(cumulative, weight, target, index):
    """The first of `index` whose cumulative weight exceeds the target, else the last with weight > 0; -1 if none."""
    above = tl.min(tl.where(cumulative > target, index, BEYOND), 0)
    last = tl.max(tl.where(weight > 0.0, index, -1), 0)
    return tl.where(above == BEYOND, last, above)


@triton.jit
def draw(row, candidates, pivot, best, best_id, mass, u, inverse_temperature, scale, tile):
    """(column int32, its logit f32) of one draw.

    Args:
        row, candidates, pivot: the set drawn from (`read_set`), which is not empty.
        best, mass: fp64 [tiles], the tiles' best candidate and the sum of the others' exponentials at temperature T.
        best_id: int32 [tiles], -1 where the tile has no candidate.
        u: fp64 in (0, 1). inverse_temperature: fp64, 1 / T. scale: f32, log2(e) / T.
        tile: int32 [tiles], 0, 1, ...
    """
    factor = tl.exp((best - tl.max(best, 0)) * inverse_temperature)
    weight = tl.where(best_id >= 0, 1.0 + mass, 0.0) * factor
    cumulative = tl.cumsum(weight, 0)
    target = u * tl.max(cumulative, 0)
    chosen = first_above(cumulative, weight, target, tile)
    before = tl.sum(tl.where(tile == chosen - 1, cumulative, 0.0), 0)
    residual = (target - before) / tl.sum(tl.where(tile == chosen, factor, 0.0), 0)

    column = tl.arange(0, TILE)
    z = read_set(row, candidates, chosen * TILE, 0, column, pivot, 1, False, True)  # [2048]
    tile_best = tl.max(tl.where(tile == chosen, best, float("-inf")), 0).to(tl.float32)
    weight = tl.exp2((z - tile_best) * scale)
    within = first_above(tl.cumsum(weight.to(tl.float64), 0), weight, residual, column)
    return chosen * TILE + within, tl.max(tl.where(column == within, z, NEG_INF), 0)
