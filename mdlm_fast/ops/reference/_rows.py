"""Where the rows of logits come from: a tensor, or hidden states and an LM head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class RowSource(Protocol):
    """Rows of logits that can be read a range of columns at a time."""

    @property
    def num_rows(self) -> int: ...

    @property
    def width(self) -> int: ...

    def columns(self, start: int, stop: int) -> Tensor:
        """z[:, start:stop] in fp32, guidance applied: a fresh contiguous tensor [rows, stop - start]."""
        ...

    def subset(self, index: Tensor) -> RowSource:
        """The rows at `index` (int64)."""
        ...


@dataclass(frozen=True)
class LogitRows:
    """Selected rows of a logits tensor [N, V] or [B, L, V] of any strides and dtype.

    `rows` (int64, no padding) index the flattened leading dimensions; only the columns asked for are ever copied.
    """

    logits: Tensor
    rows: Tensor
    guidance: Tensor | None = None
    guidance_rows: Tensor | None = None
    scale: float = 0.0

    @property
    def num_rows(self) -> int:
        return self.rows.numel()

    @property
    def width(self) -> int:
        return self.logits.shape[-1]

    def columns(self, start: int, stop: int) -> Tensor:
        z = gather_rows(self.logits[..., start:stop], self.rows)
        g = None
        if self.guidance is not None:
            assert self.guidance_rows is not None
            g = gather_rows(self.guidance[..., start:stop], self.guidance_rows)
        return _guided(z, g, self.scale)

    def subset(self, index: Tensor) -> LogitRows:
        return replace(self, rows=self.rows[index], guidance_rows=_pick(self.guidance_rows, index))


@dataclass(frozen=True)
class LinearRows:
    """Rows F.linear(hidden[rows], weight, bias), computed for the columns asked for and rounded to the input dtype."""

    hidden: Tensor  # [rows, H], already gathered
    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]
    guidance: Tensor | None = None  # [rows, H]
    scale: float = 0.0

    @property
    def num_rows(self) -> int:
        return self.hidden.shape[0]

    @property
    def width(self) -> int:
        return self.weight.shape[0]

    def columns(self, start: int, stop: int) -> Tensor:
        weight = self.weight[start:stop]
        bias = None if self.bias is None else self.bias[start:stop]
        g = None if self.guidance is None else F.linear(self.guidance, weight, bias)
        return _guided(F.linear(self.hidden, weight, bias), g, self.scale)

    def subset(self, index: Tensor) -> LinearRows:
        return replace(self, hidden=self.hidden[index], guidance=_pick(self.guidance, index))


def gather_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Rows of [N, X] or [B, L, X] by flat index, without flattening (which would copy a sliced tensor)."""
    if tensor.dim() == 2:
        return tensor[rows]
    length = tensor.shape[1]
    return tensor[torch.div(rows, length, rounding_mode="floor"), rows % length]


def _guided(z: Tensor, g: Tensor | None, scale: float) -> Tensor:
    z = z.float()
    if g is not None and scale != 0.0:  # an id at -inf stays there: -inf - (-inf) would refuse the row for NaN
        z = torch.where(z == -torch.inf, z, (scale + 1.0) * z - scale * g.float())
    return z.contiguous()


def _pick(tensor: Tensor | None, index: Tensor) -> Tensor | None:
    return None if tensor is None else tensor[index]
