"""Inputs, made on the CPU from a seed: rows of logits of every kind, layouts in memory, heads of whole numbers."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Generator, Tensor

TILE = 2048


def seeded(*key: object) -> Generator:
    """A generator of its own for every case, the same in every process."""
    return torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))


def random_rows(g: Generator, count: int, width: int) -> Tensor:
    """From nearly flat to nearly certain."""
    return torch.randn(count, width, generator=g) * torch.linspace(0.1, 12.0, count)[:, None]


def flat_rows(g: Generator, count: int, width: int) -> Tensor:
    return torch.randn(count, width, generator=g) * 0.5


def peaked_rows(g: Generator, count: int, width: int) -> Tensor:
    """One logit 14 to 30 above the others, at 29, where z - logsumexp in fp32 has lost its digits."""
    rows = 29.0 - torch.linspace(14.0, 30.0, count)[:, None] + torch.rand(count, width, generator=g)
    rows[torch.arange(count), torch.randint(width, (count,), generator=g)] = 29.0
    return rows


def tied_rows(g: Generator, count: int, width: int) -> Tensor:
    """Seven values, zeros of both signs; the first row is one value throughout."""
    rows = torch.randint(-3, 4, (count, width), generator=g).float()
    rows = torch.where((rows == 0) & (torch.rand(rows.shape, generator=g) < 0.5), -0.0, rows)
    rows[0] = 2.0
    return rows


def rows_with_holes(g: Generator, count: int, width: int) -> Tensor:
    """Four entries of ten at -inf."""
    rows = torch.randn(count, width, generator=g) * 4
    rows[torch.rand(rows.shape, generator=g) < 0.4] = -torch.inf
    rows[:, width // 2] = 0.5
    return rows


def rows_with_empty_tiles(g: Generator, count: int, width: int) -> Tensor:
    """All tiles but one at -inf; in a third of the rows one entry alone is finite."""
    rows = torch.full((count, width), -torch.inf)
    for i in range(count):
        start = (i % math.ceil(width / TILE)) * TILE
        stop = min(start + TILE, width) if i % 3 else start + 1
        rows[i, start:stop] = torch.randn(stop - start, generator=g) * 3
    return rows


def stepped_rows(g: Generator, count: int, width: int) -> Tensor:
    """Multiples of 1/8 below 8: guided sums of them are exact in fp32."""
    return torch.randint(-63, 64, (count, width), generator=g) / 8


VALUES = {
    "random": random_rows,
    "flat": flat_rows,
    "peaked": peaked_rows,
    "tied": tied_rows,
    "holes": rows_with_holes,
    "empty tiles": rows_with_empty_tiles,
    "stepped": stepped_rows,
}


def placed(tensor: Tensor, layout: str, device: str) -> Tensor:
    """A copy of [N, V] or [B, L, V] on the device, with NaN around it wherever the layout leaves room."""
    if layout == "contiguous":
        return tensor.to(device, copy=True)
    *batch, count, width = tensor.shape
    if layout == "strided rows":  # an even number of elements between rows, as of a padded head
        buffer = torch.full((*batch, count, width + 24), torch.nan, dtype=tensor.dtype)
        view = buffer[..., 8 : 8 + width]
    elif layout == "misaligned rows":  # every row begins at another offset from sixteen bytes
        buffer = torch.full((*batch, count, width + 3), torch.nan, dtype=tensor.dtype)
        view = buffer[..., 1 : 1 + width]
    else:
        assert layout == "sliced sequences" and batch, layout  # e.g. the answer's part of every sequence
        buffer = torch.full((*batch, count + 3, width), torch.nan, dtype=tensor.dtype)
        view = buffer[:, 3:]
    view.copy_(tensor)
    moved = buffer.to(device)
    return moved.as_strided(view.shape, view.stride(), view.storage_offset())


def whole_numbers(g: Generator, *shape: int, depth: int) -> Tensor:
    """Mostly zeros, so that products summed over `depth` stay below 256 and are exact even in bfloat16."""
    share = min(0.4, 12.0 / depth)
    return (torch.randint(-3, 4, shape, generator=g) * (torch.rand(shape, generator=g) < share)).float()
