"""Shapes that the ops on logits are measured at."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..settings import Settings

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ROWS = (1, 8, 32, 128, 512)
#: A toy's, Llama 2's, LLaDA's, the width of Dream's logits, Gemma's.
VOCABULARIES = (1_000, 32_000, 126_464, 151_936, 262_144)


@dataclass(frozen=True)
class Shape:
    """Logits [rows, vocab] of a dtype."""

    dtype: torch.dtype
    rows: int
    vocab: int

    @property
    def elements(self) -> int:
        return self.rows * self.vocab

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize

    def case(self, op: str, variant: str) -> dict[str, Any]:
        """What a record of this shape is found by."""
        return {
            "op": op,
            "variant": variant,
            "dtype": str(self.dtype).removeprefix("torch."),
            "rows": self.rows,
            "vocab": self.vocab,
        }


#: A block of 32 positions of LLaDA.
CENTRE = Shape(torch.bfloat16, 32, 126_464)


def cross(settings: Settings) -> Iterator[Shape]:
    """The whole product of dtypes, rows and vocabularies; in the small set the lines through CENTRE alone: all rows and
    all vocabularies in its dtype, and the other dtypes at its size. In order of dtypes."""
    for dtype, rows, vocab in itertools.product(DTYPES, ROWS, VOCABULARIES):
        shape = Shape(dtype, rows, vocab)
        apart = (dtype != CENTRE.dtype) * 2 + (rows != CENTRE.rows) + (vocab != CENTRE.vocab)
        if settings.full or apart <= 1 or (rows, vocab) == (CENTRE.rows, CENTRE.vocab):
            yield shape


def centre(settings: Settings) -> Iterator[Shape]:
    """The whole product; in the small set CENTRE alone."""
    yield from cross(settings) if settings.full else (CENTRE,)
