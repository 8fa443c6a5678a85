"""Rows of logits that cannot be scored (NaN, +inf, no candidate left), remembered until the host reads the device."""

from __future__ import annotations

import torch
from torch import Tensor

from mdlm_fast.ops import ROW_FAULTS, BadLogits


class BadRows:
    """The worst row code of each of N decoded rows.

    A bad row commits nothing; noting it does not make the host wait. device: where they are remembered; None where the
    ops raise at once, as they do on the CPU, so that there is nothing to remember.
    """

    def __init__(self, rows: int, device: torch.device | None) -> None:
        self._code = None if device is None else torch.zeros(rows, dtype=torch.int64, device=device)

    def note(self, token: Tensor, number: Tensor) -> None:
        """Remembers the codes among scored tokens. token, number: int64 [C]; number: the decoded row of each."""
        if self._code is not None:
            self._code.scatter_reduce_(0, number, token, "amin")

    def check(self) -> None:
        """Raises for the first row that could not be scored; waits for the device.

        Raises:
            BadLogits: names the row and what is wrong with its logits.
        """
        if self._code is None or not self._code.numel() or int(self._code.min()) >= -1:
            return
        codes = self._code.tolist()
        at = next(row for row, code in enumerate(codes) if code < -1)
        raise BadLogits(f"decoding row {at}: a row of logits {ROW_FAULTS[codes[at]]}; nothing was committed from it")
