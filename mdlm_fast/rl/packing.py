"""Packs: how many views share one forward and backward pass.

The loss is a sum over views, so any cut gives the same gradient. A pack of one view needs the least memory; larger
packs keep a GPU busy and read the LM head's weight fewer times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mdlm_fast.rl.views import View

#: Positions after which a larger pack no longer makes a forward and backward pass more efficient.
ENOUGH_POSITIONS = {"cuda": 32768, "cpu": 512}
#: Share of the free memory that a pack's saved tensors may fill; the backward pass needs room beside them.
FREE_SHARE = 0.4


class PackPlanner:
    """Cuts a list of views into packs.

    size: views a pack, or "auto": the positions a pack may hold follow from the free memory and from what the first
    pack, of one view, kept for its backward pass.
    """

    def __init__(self, size: int | str, device: torch.device) -> None:
        self._size = size
        self._device = device
        self._bytes_per_position: float | None = None
        self._limit: int | None = None

    def packs(self, views: Sequence[View]) -> list[list[View]]:
        """The views in order, cut into packs."""
        if isinstance(self._size, int):
            return [list(views[i : i + self._size]) for i in range(0, len(views), self._size)]
        limit = self.positions()
        packs: list[list[View]] = []
        filled = 0
        for view in views:
            need = view.attention_mask.numel()
            if packs and filled + need <= limit:
                packs[-1].append(view)
                filled += need
            else:
                packs.append([view])
                filled = need
        return packs

    def positions(self) -> int:
        """Positions a pack may hold; 0: one view only. It never grows, so a resumed run cuts as the interrupted one
        would have, to the last bit of the gradient, unless it has less memory."""
        if self._bytes_per_position is None:
            return 0
        fits = int(FREE_SHARE * free_memory(self._device) / self._bytes_per_position)
        enough = ENOUGH_POSITIONS.get(self._device.type, ENOUGH_POSITIONS["cpu"])
        self._limit = min(fits, enough if self._limit is None else self._limit)
        return self._limit

    def state(self) -> dict[str, float | None]:
        """What was measured, for a checkpoint."""
        return {"bytes_per_position": self._bytes_per_position, "limit": self._limit}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes up what `state` gave."""
        self._bytes_per_position, self._limit = state["bytes_per_position"], state["limit"]

    @property
    def must_measure(self) -> bool:
        """Whether the next pack is to run under `measure`."""
        return self._size == "auto" and self._bytes_per_position is None

    @contextmanager
    def measure(self, pack: Sequence[View], module: nn.Module) -> Iterator[None]:
        """Counts the bytes that the forward pass inside keeps for the backward pass, parameters left out."""
        sharded = any(isinstance(parameter, DTensor) for parameter in module.parameters())
        known = _whole_weights(module)
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            # FSDP gathers a layer's weights while the layer runs and frees them behind it.
            if storage.data_ptr() not in (_whole_weights(module) if sharded else known):
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield
        positions = sum(view.attention_mask.numel() for view in pack)
        self._bytes_per_position = max(sum(kept.values()), 1) / positions


def _whole_weights(module: nn.Module) -> set[int]:
    """Addresses of the parameters that are whole on this device at the moment."""
    return {p.untyped_storage().data_ptr() for p in module.parameters() if not isinstance(p, DTensor)}


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated: on a GPU, free memory and what the allocator holds unused."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(psutil.virtual_memory().available)
