"""RolloutBuffer: one generation batch while it is trained on, and what a checkpoint needs to go on in its middle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mdlm_fast.rl.rollout import RolloutBatch
from mdlm_fast.rl.views import View, from_tensors, to_tensors


@dataclass
class RolloutBuffer:
    """A rollout, its advantages, and the views of every pass over it.

    Attributes:
        batch: B completions of this process.
        advantages: float32 [B] or [B, S]. groups: int64 [B], number of each completion's prompt in the data set.
        views: of each chunk (completions of one optimizer step), of each of its passes, the views; passes may share
            them. chunk_size: completions a chunk.
    """

    batch: RolloutBatch
    advantages: Tensor
    groups: Tensor
    chunk_size: int
    views: list[list[list[View]]] = field(default_factory=list)

    def chunk_rows(self) -> list[slice]:
        """The completions of each chunk."""
        count = self.groups.shape[0]
        return [slice(first, first + self.chunk_size) for first in range(0, count, self.chunk_size)]

    def micro_batch(self, iteration: int, first: int, count: int) -> list[View]:
        """The views of completions first..first + count in a pass over the buffer."""
        chunk, offset = divmod(first, self.chunk_size)
        views = self.views[chunk][iteration]
        keep = torch.zeros(self.chunk_size, dtype=torch.bool, device=self.groups.device)
        keep[offset : offset + count] = True
        return [part for view in views if (part := view.select(keep)) is not None]

    def prompts_of(self, first: int) -> Tensor:
        """int64 [chunk_size], the prompt numbers of the chunk that completion `first` is in, which views number by."""
        start = first - first % self.chunk_size
        return self.groups[start : start + self.chunk_size]

    def to_dict(self) -> dict[str, Tensor]:
        """All of it as tensors for safetensors; views are saved as what they add to the trajectory."""
        tensors = {"advantages": self.advantages, "groups": self.groups}
        for chunk, passes in enumerate(self.views):
            for iteration, views in enumerate(_distinct(passes)):
                tensors |= to_tensors(views, f"views.{chunk}.{iteration}")
        return {**{name: t.contiguous() for name, t in tensors.items()}, **self.batch.to_dict()}

    @classmethod
    def from_dict(cls, tensors: dict[str, Tensor], chunk_size: int) -> RolloutBuffer:
        """The buffer without views; build them, then `restore_views`."""
        batch = RolloutBatch.from_dict(tensors)
        return cls(batch, tensors["advantages"], tensors["groups"], chunk_size)

    def restore_views(self, tensors: dict[str, Tensor]) -> None:
        """Gives newly built views what `to_dict` saved of them."""
        for chunk, passes in enumerate(self.views):
            distinct = [
                from_tensors(views, tensors, f"views.{chunk}.{iteration}")
                for iteration, views in enumerate(_distinct(passes))
            ]
            self.views[chunk] = distinct if len(distinct) == len(passes) else distinct * len(passes)


def _distinct(passes: Sequence[list[View]]) -> list[list[View]]:
    """The passes, or the one that all of them share."""
    return [passes[0]] if all(views is passes[0] for views in passes) else list(passes)
