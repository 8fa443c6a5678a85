"""The canvas: prompts plus masks to fill, with everything decoding must know about each position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Block number of positions that are never written; larger than any block, so `block <= active` leaves them out.
NO_BLOCK = 32767


@dataclass(frozen=True)
class Canvas:
    """B canvases of L positions, before decoding.

    ids: int64 [B, L]. real: bool [B, L], False on pads. eligible: bool [B, L], positions decoding may write: the
    generated part and the masks of the prompt. block: int16 [B, L], the block of an eligible position (masks of the
    prompt belong to block 0), else NO_BLOCK. position: int32 [B, L], real tokens before each position. start: int64
    [B], first position of the generated part. generated: int, its length. mask_id: int.
    """

    ids: Tensor
    real: Tensor
    eligible: Tensor
    block: Tensor
    position: Tensor
    start: Tensor
    generated: int
    mask_id: int

    def counts(self, blocks: int) -> Tensor:
        """int64 [B, blocks], masks in each block."""
        found = torch.zeros(self.ids.shape[0], blocks + 1, dtype=torch.int64, device=self.ids.device)
        column = self.block.to(torch.int64).clamp(max=blocks)
        return found.scatter_add_(1, column, torch.ones_like(column))[:, :blocks]

    def repeat(self, times: int) -> Canvas:
        """Every canvas ``times`` times in a row."""
        if times == 1:
            return self
        rows = torch.arange(self.ids.shape[0], device=self.ids.device).repeat_interleave(times)
        tensors = {
            name: getattr(self, name)[rows] for name in ("ids", "real", "eligible", "block", "position", "start")
        }
        return Canvas(**tensors, generated=self.generated, mask_id=self.mask_id)


def build_canvas(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    block_sizes: list[int],
    mask_id: int,
    vocab_size: int | None = None,
) -> Canvas:
    """Appends the masks of ``block_sizes`` to every prompt.

    input_ids: int64 or int32 [B, P]. Mask tokens among the real tokens are filled as part of block 0.
    attention_mask: bool, integer or float [B, P], 1 = real; the real tokens of a row must lie together. The generated
    part follows each row's last real token, so right padding ends up behind it.
    vocab_size: ids must be below it.
    Raises TypeError or ValueError naming what does not fit.
    """
    _check_ids(input_ids, vocab_size)
    ids = input_ids.to(torch.int64)
    batch, length = ids.shape
    real = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else _check_mask(attention_mask, ids)
    generated = sum(block_sizes)
    if generated == 0:
        canvas, canvas_real = ids.clone(), real
        start = torch.full((batch,), length, dtype=torch.int64, device=ids.device)
        block = torch.full_like(ids, NO_BLOCK, dtype=torch.int16)
    else:
        count = torch.arange(length, device=ids.device)
        # Behind the last real token; a row without any is all left padding.
        start = torch.where(real, count + 1, 0).amax(1) if length else ids.new_zeros(batch)
        start = torch.where(start == 0, length, start)
        place = torch.arange(length + generated, device=ids.device) - start[:, None]
        inside = (place >= 0) & (place < generated)
        source = torch.where(place >= generated, place - generated + start[:, None], place + start[:, None])
        source = source.clamp(max=max(length - 1, 0))
        empty = ids.new_full((batch, length + generated), mask_id)
        canvas = torch.where(inside, mask_id, ids.gather(1, source)) if length else empty
        canvas_real = (inside | real.gather(1, source)) if length else torch.ones_like(empty, dtype=torch.bool)
        of_place = [block for block, size in enumerate(block_sizes) for _ in range(size)]
        names = torch.tensor(of_place, dtype=torch.int16, device=ids.device)
        block = torch.where(inside, names[place.clamp(0, generated - 1)], NO_BLOCK).to(torch.int16)
    masks = (canvas == mask_id) & canvas_real
    block = torch.where(masks & (block == NO_BLOCK), 0, block).to(torch.int16)
    position = (canvas_real.cumsum(1) - 1).clamp(min=0).to(torch.int32)
    return Canvas(canvas, canvas_real, block != NO_BLOCK, block, position, start, generated, mask_id)


def _check_ids(input_ids: Tensor, vocab_size: int | None) -> None:
    if not isinstance(input_ids, Tensor):
        raise TypeError(f"input_ids must be a tensor, got {type(input_ids).__name__}")
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"input_ids must be int64 or int32, got {input_ids.dtype}")
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids must have shape [B, P], got {tuple(input_ids.shape)}")
    check_id_range("input_ids", input_ids, vocab_size)


def check_id_range(name: str, ids: Tensor, vocab_size: int | None) -> None:
    """Refuses negative token ids and those the model has no embedding for."""
    if ids.numel():
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or (vocab_size is not None and high >= vocab_size):
            wrong, bound = (low, "not negative") if low < 0 else (high, f"below the vocabulary size {vocab_size}")
            raise ValueError(f"{name} holds {wrong}: token ids must be {bound}")


def _check_mask(attention_mask: Tensor, ids: Tensor) -> Tensor:
    if not isinstance(attention_mask, Tensor):
        raise TypeError(f"attention_mask must be a tensor, got {type(attention_mask).__name__}")
    if attention_mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; expected that of input_ids, {tuple(ids.shape)}"
        )
    if attention_mask.device != ids.device:
        raise ValueError(f"attention_mask is on {attention_mask.device}, input_ids on {ids.device}: move one of them")
    real = attention_mask.to(torch.bool)
    if not torch.equal(real.to(attention_mask.dtype), attention_mask):
        raise ValueError("attention_mask must hold 0 and 1 only")
    if real.shape[1]:
        edges = real[:, 0].to(torch.int64) + (real[:, 1:] & ~real[:, :-1]).sum(1)
        if bool((edges > 1).any()):
            row = int((edges > 1).nonzero()[0])
            raise ValueError(f"attention_mask row {row} has pads between real tokens: pad on the left or on the right")
    return real
