"""When a row ends before all its masks are filled: at an end token, or at a stop string."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdlm_fast.row_state import RowState


def ended_at_eos(state: RowState, eos_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in which an end token is committed and no mask precedes the first one.

    Returns bool [n] and the position of that token, int64 [n] (L where there is none).
    """
    length = state.canvas.shape[1]
    at = torch.arange(length, device=state.canvas.device)
    committed = state.eligible & ~state.masked
    first_end = torch.where(torch.isin(state.canvas, eos_ids) & committed, at, length).amin(1)
    first_mask = torch.where(state.masked, at, length).amin(1)
    return first_end < first_mask, first_end


class StopStrings:
    """Looks for stop strings in the text of the generated tokens that no mask precedes."""

    def __init__(self, tokenizer: Any, strings: tuple[str, ...], start: Tensor, generated: int) -> None:
        if tokenizer is None:
            raise ValueError(
                f"stop_strings={strings} needs a tokenizer: wrap the model with one, or leave stop_strings out"
            )
        self.tokenizer = tokenizer
        self.strings = strings
        self.start = start.tolist()
        self.generated = generated
        self.checked: dict[int, int] = {}

    def ended(self, state: RowState, rows: list[int]) -> list[tuple[int, int]]:
        """(index in the batch, position of the last token to keep) of every row whose text holds a stop string.

        rows: number of each row of the batch. Reads the canvas on the host, and decodes a row only if its text grew.
        """
        found = []
        masked = state.masked.cpu()
        canvas = state.canvas.cpu()
        for index, row in enumerate(rows):
            part = slice(self.start[row], self.start[row] + self.generated)
            holes = masked[index, part]
            known = int(holes.long().argmax()) if holes.any() else self.generated
            if known == self.checked.get(row, 0):
                continue
            self.checked[row] = known
            last = self._first_hit(canvas[index, part][:known].tolist())
            if last is not None:
                found.append((index, part.start + last))
        return found

    def forget(self, rows: list[int]) -> None:
        """To be called when rows get other contents (resampled particles)."""
        for row in rows:
            self.checked.pop(row, None)

    def _first_hit(self, ids: list[int]) -> int | None:
        """Index of the token that completes the first stop string, or None."""
        if not self._holds(ids):
            return None
        low, high = 1, len(ids)  # the text of `high` tokens holds a stop string
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._holds(ids[:middle]) else (middle + 1, high)
        return low - 1

    def _holds(self, ids: list[int]) -> bool:
        text = self.tokenizer.decode(ids)
        return any(string in text for string in self.strings)


def fill_tail(canvas: Tensor, eligible: Tensor, last: Tensor, fill_id: int) -> Tensor:
    """A canvas [n, L] whose eligible positions behind ``last`` int64 [n] hold ``fill_id``."""
    at = torch.arange(canvas.shape[1], device=canvas.device)
    return torch.where(eligible & (at > last[:, None]), fill_id, canvas)
