"""What an attention mask means for a bidirectional model: positions, neighbours, and the mask the model gets."""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from torch import Tensor


class Padding(NamedTuple):
    """An attention mask, read once. All tensors are on the mask's device.

    Attributes:
        real: bool [B, L], True for tokens that take part.
        position_ids: int64 [B, L], the number of real tokens before each position; 0 on leading pads.
        left: int32 [B*L], flat index of the previous real position of the same sequence, or of the position itself
            where none precedes it: the hidden row that predicts a position when logits are shifted by one.
        displaced: whether a pad precedes a real token, so that column and position differ.
    """

    real: Tensor
    position_ids: Tensor
    left: Tensor
    displaced: bool


def read_padding(attention_mask: Tensor) -> Padding | None:
    """Read a [B, L] mask (bool or 0/1 integers, True = real); None where it pads nothing.

    Raises:
        ValueError: a sequence without any real token.
    """
    real = attention_mask.to(torch.bool)
    if bool(real.all()):
        return None
    empty = ~real.any(dim=1)
    if bool(empty.any()):
        raise ValueError(
            f"attention_mask has no real token in row {int(empty.nonzero()[0])}; drop that row from the batch"
        )
    batch, length = real.shape
    positions = torch.arange(length, device=real.device)
    last_real = torch.where(real, positions, -1).cummax(dim=1).values
    before = torch.nn.functional.pad(last_real[:, :-1], (1, 0), value=-1)
    left = torch.where(before < 0, positions, before)
    offset = torch.arange(batch, device=real.device)[:, None] * length
    position_ids = (real.cumsum(dim=1) - 1).clamp(min=0)
    displaced = bool((real & (position_ids != positions)).any())
    return Padding(real, position_ids, (left + offset).to(torch.int32).flatten(), displaced)


class PaddingReader:
    """`read_padding` that remembers the last mask, so a decode loop reads its mask (a device sync) once."""

    def __init__(self) -> None:
        self._last: tuple[weakref.ref[Tensor], int, Padding | None] | None = None

    def __call__(self, attention_mask: Tensor | None) -> Padding | None:
        if attention_mask is None:
            return None
        if attention_mask.is_inference():  # such tensors have no version counter to notice a change by
            return read_padding(attention_mask)
        last = self._last
        if last is not None and last[0]() is attention_mask and last[1] == attention_mask._version:
            return last[2]
        padding = read_padding(attention_mask)
        self._last = (weakref.ref(attention_mask), attention_mask._version, padding)
        return padding
