"""The probe: are a model's logits those of its output head, row by row, with nothing after it?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mdlm_fast.models._patch import is_plain_linear

_PROBE_ROWS = 16


def probe_rows(output: Tensor, length: int) -> tuple[Tensor, bool]:
    """Rows to compare, spread over the batch, each with its left neighbour, and whether they can show a shift.

    Equal neighbours (a canvas of nothing but masks under RoPE gives equal rows everywhere) hide a shift; then the
    answer is put off to the next forward.
    """
    flat = output.detach().flatten(0, -2)
    total = flat.shape[0]
    spread = torch.linspace(0, total - 1, min(_PROBE_ROWS, total), device=output.device).round().long()
    picked = torch.unique(torch.cat([spread, (spread - 1).clamp(min=0)]))
    inside = picked[picked % length > 0]
    telling = bool((flat[inside] != flat[inside - 1]).any()) if inside.numel() else False
    return picked, telling


def compare(
    head: nn.Module, logits: Tensor, hidden: Tensor | None, picked: Tensor, head_rows: Tensor, telling: bool
) -> tuple[str | None, bool]:
    """Why this model's logits are not those of its head row by row, or None; and whether the probe could tell."""
    if hidden is None:
        return "its output head does not map hidden states to logits row by row", telling
    if logits.shape != (*hidden.shape[:-1], head_rows.shape[-1]):
        return f"its logits have shape {tuple(logits.shape)} but its head received {tuple(hidden.shape)}", telling
    model_rows = logits.detach().flatten(0, -2)[picked]
    if not torch.allclose(model_rows, head_rows.to(model_rows.dtype), rtol=0.0, atol=0.0, equal_nan=True):
        return "it changes its logits after the output head (a scale, softcap, mask or shift)", telling
    if not is_plain_linear(head):
        with torch.no_grad():
            shape = (1, -1, hidden.shape[-1]) if hidden.ndim == 3 else (-1, hidden.shape[-1])
            alone = head(hidden.flatten(0, -2)[picked].reshape(shape)).flatten(0, -2).float()
        slack = {torch.float32: 1e-3, torch.float16: 4e-3}.get(head_rows.dtype, 3e-2)
        wide = head_rows.float()
        scale = wide[wide.isfinite()].abs().max() if wide.isfinite().any() else wide.new_ones(())
        if not torch.allclose(alone, wide, rtol=0.0, atol=float(scale) * slack, equal_nan=True):
            return "its output head gives other logits for rows taken alone", telling
    return None, telling
