r"""Drawing a token by inverse CDF, and the filters that restrict the draw.

One uniform u per row. Tiles first: with weights W_j = (1 + s_j) exp((b_j - b)/T) in fp64 and order of ids, the tile
is the first whose cumulative weight exceeds u W. Then the columns of that tile alone: w_v = exp((z_v - b_j)/T) in
fp32, prefix sums in fp64 in order of ids, the first above what is left of u W. Rounding can leave a remainder beyond
the last weight; the last tile or column with weight > 0 takes it.

Any correct fp32 implementation returns a v with C(v-1) - 2^-20 <= u < C(v) + 2^-20, C the exact CDF in order of ids.

Filters work on the tempered candidates: top-p keeps the smallest set of largest candidates that holds at least the
share p of their mass, top-k the k largest; both keep every id tied with the smallest one kept (the pivot), so
together they keep z >= the larger pivot.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mdlm_fast.ops._schemas import TILE
from mdlm_fast.ops.reference._rows import RowSource
from mdlm_fast.ops.reference._tiles import _CHUNK, TileStatistics

_NEG_INF = float("-inf")


def filter_pivot(source: RowSource, allowed: Tensor, temperature: Tensor, top_k: int, top_p: float) -> Tensor:
    """The smallest logit that top-p and top-k keep: f32 [rows]. `temperature` f32 [rows], > 0."""
    block = max(1, _CHUNK // source.width)
    pivots = []
    for index in torch.arange(source.num_rows, device=allowed.device).split(block):
        z = torch.where(allowed, source.subset(index).columns(0, source.width), _NEG_INF)
        z = z.sort(dim=1, descending=True).values
        pivot = z.new_full((z.shape[0],), _NEG_INF)
        if top_p < 1.0:
            weight = ((z - z[:, :1]) / temperature[index, None]).exp()
            cumulative = weight.double().cumsum(1)
            last = (cumulative < top_p * cumulative[:, -1:]).sum(1, keepdim=True).clamp(max=source.width - 1)
            pivot = z.gather(1, last)[:, 0]
        if top_k > 0:
            pivot = torch.maximum(pivot, z[:, min(top_k, source.width) - 1])
        pivots.append(pivot)
    return torch.cat(pivots) if pivots else temperature.new_empty(0)


def draw(
    source: RowSource,
    allowed: Tensor,
    statistics: TileStatistics,
    temperature: Tensor,
    u: Tensor,
    pivot: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Draw one id per row.

    Args:
        source, allowed, temperature (f32 [rows], > 0), pivot: as for `tile_statistics`; every row has a candidate.
        statistics: of the same candidates.
        u: float64 [rows] in (0, 1).

    Returns:
        (id int64 [rows], its logit f32 [rows]).
    """
    best = statistics.best.double()
    scale = ((best - best.amax(1, keepdim=True)) / temperature.double()[:, None]).exp()
    weight = torch.where(statistics.best_id >= 0, 1.0 + statistics.mass_rest.double(), 0.0) * scale
    cumulative = weight.cumsum(1)
    target = u * cumulative[:, -1]
    tile = _first_above(cumulative, weight, target)
    before = torch.where(tile > 0, cumulative.gather(1, (tile - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    residual = (target - before) / scale.gather(1, tile[:, None])[:, 0]

    token = torch.empty_like(tile)
    logit = torch.empty_like(temperature)
    for j in tile.unique().tolist():
        index = (tile == j).nonzero()[:, 0]
        low, high = j * TILE, min((j + 1) * TILE, source.width)
        z = source.subset(index).columns(low, high)
        candidates = allowed[low:high].expand_as(z)
        if pivot is not None:
            candidates = candidates & (z >= pivot[index, None])
        d = (torch.where(candidates, z, _NEG_INF) - statistics.best[index, j, None]) / temperature[index, None]
        w = d.exp()
        column = _first_above(w.double().cumsum(1), w, residual[index])
        token[index] = low + column
        logit[index] = z.gather(1, column[:, None])[:, 0]
    return token, logit


def _first_above(cumulative: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Index of the first cumulative weight above the target, else of the last weight > 0."""
    above = cumulative > target[:, None]
    last = weight.shape[1] - 1 - (weight > 0).flip(1).int().argmax(1)
    return torch.where(above.any(1), above.int().argmax(1), last)
