r"""Statistics of a row of logits, tile by tile, and how tiles merge.

The maths of every scoring op, derived once. z is a row in fp32 (after guidance), T > 0 the temperature (a sequence
with T = 0 is greedy and uses T = 1 here), A the candidates, K the ids in the normaliser: K = A, or every id with
normalize_over="all".

Tiles. The vocabulary is cut into canonical tiles, columns [2048 j, 2048 j + 2048) of the global ids. A tile's numbers
depend on nothing outside it, so tiles may be computed anywhere, in any order, on any shard. In tile j, in fp32:

    m_j  = max over K of z, at id k_j             b_j = max over A of z, at id a_j      (ties: lowest id)
    r_j  = sum over K \ k_j of exp(z_v - m_j)     s_j = sum over A \ a_j of exp((z_v - b_j)/T)
    e_j  = sum over K of d_v exp(d_v),            d_v = z_v - m_j, or (z_v - m_j)/T for the tempered entropy

The 1 that the maximum itself contributes is left out of r_j and s_j: next to it, the terms of a confident row (a gap
of 14 is 8e-7) would lose their digits in fp32. All exponents are <= 0, so nothing overflows. A tile without a finite
entry has m_j = -inf and contributes 0; exp(-inf - -inf) is never formed.

Merge, in fp64 and in order of ids. With M = max m_j, in tile J, and c_j = exp(m_j - M):

    r    = c_J r_J + sum over j != J of c_j (1 + r_j)               so that  Z = sum exp(z - M) = 1 + r
    logp(v) = (z_v - M) - log1p(r)                                  no digits lost when r is small
    t    = sum c_j (e_j + (m_j - M)(1 + r_j))                       the moment sum of (z - M) exp(z - M)
    entropy = log1p(r) - t / (1 + r)                                since H = log Z - sum p (z - M)
    margin  = exp(b - M) (1 - exp(b2 - b)) / (1 + r)                b, b2 = best two candidates (expm1)

The unshifted moment sum z exp(z) would cancel against log Z. Tempered statistics are the same with (.)/T in every
exponent.

Order of summation: within a tile by halving (`tree_sum`), which fixes the bits whatever the number of rows or threads.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from mdlm_fast.ops._schemas import TILE
from mdlm_fast.ops.reference._rows import RowSource

_CHUNK = 1 << 21  # elements of z held at a time
_NEG_INF = float("-inf")


@dataclass
class TileStatistics:
    """Statistics per row and tile, all [rows, tiles]; ids are global, int64, -1 where the tile has none."""

    top: Tensor  # m_j
    top_id: Tensor  # k_j
    best: Tensor  # b_j
    best_id: Tensor  # a_j
    second: Tensor  # value of the second-best candidate of the tile
    rest: Tensor  # r_j
    mass_rest: Tensor  # s_j
    moment: Tensor  # e_j
    tempered_rest: Tensor  # r_j with exponents divided by T: the tempered normaliser, relative to m_j


def tree_sum(x: Tensor) -> Tensor:
    """Sum over the last dimension (a power of two) by adding the upper half to the lower half until one is left."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def allowed_ids(width: int, start: int, forbidden_ids: Tensor | None, vocab_limit: int, device: torch.device) -> Tensor:
    """bool [width]: which of the ids start, start + 1, ... are candidates."""
    ids = torch.arange(start, start + width, device=device)
    allowed = ids < vocab_limit
    if forbidden_ids is not None:
        allowed &= ~torch.isin(ids, forbidden_ids)
    return allowed


def tile_statistics(
    source: RowSource,
    allowed: Tensor,
    temperature: Tensor,
    *,
    normalize_all: bool,
    tempered_moment: bool,
    start: int = 0,
    pivot: Tensor | None = None,
) -> TileStatistics:
    """Read each row once and return the statistics of its tiles.

    Args:
        source: the rows.
        allowed: bool [V], the candidates.
        temperature: f32 [rows], > 0.
        normalize_all: ids that are not allowed stay in the normaliser.
        tempered_moment: the moment is of the tempered distribution.
        start: global id of column 0, a multiple of 2048.
        pivot: f32 [rows]; candidates below it are removed (top-k and top-p).
    """
    tiles = -(-source.width // TILE)
    per_chunk = max(1, _CHUNK // (max(1, source.num_rows) * TILE))
    chunks = []
    for first in range(0, tiles, per_chunk):
        low, high = first * TILE, min((first + per_chunk) * TILE, source.width)
        z = source.columns(low, high)
        candidates = allowed[low:high].expand_as(z)
        if pivot is not None:
            candidates = candidates & (z >= pivot[:, None])
        z_candidates = z_normaliser = _tiled(torch.where(candidates, z, _NEG_INF))
        if normalize_all:
            # An allowed id below the pivot is out of the normaliser too; the ids that are not allowed stay in.
            z_normaliser = _tiled(torch.where(candidates | ~allowed[low:high], z, _NEG_INF))
        chunks.append(_statistics(z_normaliser, z_candidates, temperature[:, None, None], tempered_moment))
        for name in ("top_id", "best_id"):
            ids = getattr(chunks[-1], name)
            offsets = start + low + TILE * torch.arange(ids.shape[1], device=ids.device)
            setattr(chunks[-1], name, torch.where(ids >= 0, ids + offsets, ids))
    names = [f.name for f in fields(TileStatistics)]
    return TileStatistics(**{name: torch.cat([getattr(chunk, name) for chunk in chunks], 1) for name in names})


def _tiled(z: Tensor) -> Tensor:
    """[rows, tiles, 2048], filled up with -inf; one narrow tile is [rows, 1, 2^k], which sums to the same bits."""
    tiles = -(-z.shape[1] // TILE)
    size = TILE if tiles > 1 else 1 << (z.shape[1] - 1).bit_length()
    return F.pad(z, (0, tiles * size - z.shape[1]), value=_NEG_INF).view(z.shape[0], tiles, size)


def _statistics(z_normaliser: Tensor, z_candidates: Tensor, temperature: Tensor, tempered: bool) -> TileStatistics:
    top, top_at = _maximum(z_normaliser)
    is_top = _one_hot(top_at, z_normaliser)
    d = z_normaliser - _finite(top)[..., None]
    rest = tree_sum(d.exp().masked_fill_(is_top, 0.0))
    d_tempered, tempered_rest = d, rest
    if not (temperature == 1.0).all():
        d_tempered = d / temperature
        tempered_rest = tree_sum(d_tempered.exp().masked_fill_(is_top, 0.0))
    if z_candidates is z_normaliser:
        best, best_at, is_best, mass_rest = top, top_at, is_top, tempered_rest
    else:
        best, best_at = _maximum(z_candidates)
        is_best = _one_hot(best_at, z_candidates)
        d_best = (z_candidates - _finite(best)[..., None]) / temperature
        mass_rest = tree_sum(d_best.exp().masked_fill_(is_best, 0.0))
    d_moment = d_tempered if tempered else d
    moment = torch.where(d_moment == _NEG_INF, 0.0, d_moment * d_moment.exp())
    return TileStatistics(
        top=top,
        top_id=torch.where(top == _NEG_INF, -1, top_at),
        best=best,
        best_id=torch.where(best == _NEG_INF, -1, best_at),
        second=z_candidates.masked_fill(is_best, _NEG_INF).amax(-1),
        rest=rest,
        mass_rest=mass_rest,
        moment=tree_sum(moment),
        tempered_rest=tempered_rest,
    )


def _maximum(z: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over the last dimension and the lowest index that has it; a NaN counts as the maximum."""
    at = z.argmax(-1)
    return z.gather(-1, at[..., None])[..., 0], at


def _one_hot(at: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.bool).scatter_(-1, at[..., None], True)


def _finite(maximum: Tensor) -> Tensor:
    return torch.where(maximum == _NEG_INF, 0.0, maximum)


def ordered_sum(x: Tensor) -> Tensor:
    """Sum over the last dimension from left to right."""
    return x.cumsum(-1)[..., -1]


@dataclass
class Normaliser:
    """A merged row: maximum M, rest r (sum of exponentials without the maximum's own 1) and moment t; fp64 [rows]."""

    top: Tensor
    rest: Tensor
    moment: Tensor

    @property
    def log_sum(self) -> Tensor:
        """log sum exp, relative to the maximum."""
        return torch.log1p(self.rest)

    @property
    def entropy(self) -> Tensor:
        return self.log_sum - self.moment / (1.0 + self.rest)


def merge(top: Tensor, rest: Tensor, moment: Tensor, temperature: Tensor | None) -> Normaliser:
    """Merge tiles ([rows, tiles]) into rows; with `temperature` (f32 [rows]) exponents are divided by it."""
    top, rest, moment = top.double(), rest.double(), moment.double()
    maximum, at = _maximum(top)
    shift = top - _finite(maximum)[:, None]
    if temperature is not None:
        shift = shift / temperature.double()[:, None]
    scale = shift.exp()
    own = (~_one_hot(at, top)).double()  # the row's maximum is left out, the maxima of the other tiles are not
    moments = scale * (moment + torch.where(shift == _NEG_INF, 0.0, shift) * (1.0 + rest))
    return Normaliser(maximum, ordered_sum(scale * (rest + own)), ordered_sum(moments))
