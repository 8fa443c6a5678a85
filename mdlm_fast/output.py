"""What a decode returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from mdlm_fast.trajectory import Trajectory


@dataclass(frozen=True)
class DecodeStats:
    """Counts and times of a decode.

    forwards: model calls, however many rows they held. row_forwards: for each row returned, the forwards it took part
    in. row_steps: the steps it made (with steps that reveal nothing, more than its forwards). committed: tokens
    committed in the rows returned. tokens_per_forward: committed tokens per row and forward. seconds: of the whole
    decode;
    model_seconds: of them, in the model, its head and the scoring (on a GPU, until their
    kernels are queued). tokens_per_second: committed tokens / seconds.
    """

    forwards: int
    row_forwards: list[int]
    row_steps: list[int]
    committed: int
    tokens_per_forward: float
    seconds: float
    model_seconds: float
    tokens_per_second: float

    def __getitem__(self, name: str) -> Any:
        return asdict(self)[name]

    def keys(self) -> list[str]:
        """Names of the entries, so that ``dict(stats)`` works."""
        return list(asdict(self))


@dataclass(frozen=True)
class GenerateOutput:
    """sequences: int64 [B, L], B counting num_return_sequences. text: of each row, its generated tokens up to the end
    token, without special tokens; None without a tokenizer. trajectory: None with record="none". stats: see
    DecodeStats."""

    sequences: Tensor
    text: list[str] | None
    trajectory: Trajectory | None
    stats: DecodeStats
