"""How the tiles of a row merge: in fp64, summed by `tl.sum` in an order that depends on their number alone.

The maths is that of `ops/reference/_tiles.py`. A row's partials are f32 [tiles, 8]; blocks are [TILES], a power of two.
"""

import triton
import triton.language as tl

from mdlm_fast.kernels.row_logits import NEG_INF
from mdlm_fast.kernels.sampling import BEYOND


@triton.jit
def load_field(partials, field, tile, tiles, OTHER: tl.constexpr):
    """One field of a row's tiles, f32 [TILES], OTHER behind the last."""
    return tl.load(partials + tile * 8 + field, mask=tile < tiles, other=OTHER)


@triton.jit
def log1p(x):
    """fp64 log(1 + x), x >= 0, to the last digits of a small x."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def one_minus_exp(x):
    """fp64 1 - exp(x), x <= 0, to the last digits of a small x."""
    u = tl.exp(x)
    inside = (u < 1.0) & (u > 0.0)
    return tl.where(inside, (1.0 - u) * (x / tl.log(tl.where(inside, u, 0.5))), tl.where(u < 1.0, 1.0, -x))


@triton.jit
def merge(partials, tile, tiles, rest_field, inverse_temperature):
    """(maximum, rest, moment) of a row, fp64, from the fields of its tiles; exponents are divided by T."""
    top = load_field(partials, 0, tile, tiles, NEG_INF).to(tl.float64)  # [TILES]
    rest = load_field(partials, rest_field, tile, tiles, 0.0).to(tl.float64)
    moment = load_field(partials, 7, tile, tiles, 0.0).to(tl.float64)
    maximum = tl.max(top, 0)
    at = tl.min(tl.where(top == maximum, tile, BEYOND), 0)
    shift = (top - maximum) * inverse_temperature
    scale = tl.exp(shift)
    own = tl.where(tile == at, 0.0, 1.0)  # the row's maximum is left out, the maxima of the other tiles are not
    terms = moment + tl.where(shift == NEG_INF, 0.0, shift) * (1.0 + rest)
    return maximum, tl.sum(scale * (rest + own), 0), tl.sum(scale * terms, 0)


@triton.jit
def best_two(partials, tile, tiles):
    """(best candidate fp64, its tile, second-best candidate fp64) of a row."""
    best = load_field(partials, 2, tile, tiles, NEG_INF)  # [TILES]
    second = load_field(partials, 4, tile, tiles, NEG_INF)
    maximum = tl.max(best, 0)
    at = tl.min(tl.where(best == maximum, tile, BEYOND), 0)
    runner_up = tl.max(tl.where(tile == at, second, best), 0)
    return maximum.to(tl.float64), at, runner_up.to(tl.float64)
