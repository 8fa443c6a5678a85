"""Views: which rows of which canvases a method scores, with what weight. All methods are lists of these.

A trajectory becomes views, views become log-probs, log-probs become the loss: a SUM over the tokens of all views, each
with its own weight. Whatever a method's reduction divides by (tokens of a step, steps, sequences) is known from the
trajectory before the first forward pass and is part of the weight. A sum can be differentiated a part at a time, so the
graphs of two views never need to live together, and memory does not grow with the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Mix(NamedTuple):
    """A token's log-prob as a weighted sum of several rows' (coupled-GRPO).

    token: int64 [R], which of the view's N tokens a row belongs to. coefficient: float32 [R]."""

    token: Tensor
    coefficient: Tensor


@dataclass(frozen=True)
class View:
    """Rows of one forward pass that are scored together.

    Attributes:
        canvas: builds the input ids, int64 [M, L], when they are needed.
        attention_mask: bool [M, L], False on pads.
        rows: int32 [R], flat index m * L + l of each scored position.
        targets: int64 [R], its token.
        owner: int64 [M], the sequence of the batch each canvas belongs to.
        sequence: int64 [N], the sequence each token belongs to. Without `mix`, token n is row n and N = R.
        weight: float32 [N], of the policy term; the loss is a sum, so the method's reduction is in here.
        kl_weight: float32 [N], of the divergence from the reference.
        advantage: float32 [N].
        step: denoising step, for messages and pictures; -1: of no weight, scored to march in step with other processes.
        old_logp: float32 [N], under the policy that acted; None: the new log-prob, detached (nothing was updated yet).
        ref_logp: float32 [N], under the policy the divergence is measured from, or None.
        importance: float32 [N], truncated importance weight of an approximate rollout, or None.
        mix: see `Mix`.
    """

    canvas: Callable[[], Tensor]
    attention_mask: Tensor
    rows: Tensor
    targets: Tensor
    owner: Tensor
    sequence: Tensor
    weight: Tensor
    kl_weight: Tensor
    advantage: Tensor
    step: int
    old_logp: Tensor | None = None
    ref_logp: Tensor | None = None
    importance: Tensor | None = None
    mix: Mix | None = None

    @property
    def tokens(self) -> int:
        """N, tokens in the loss."""
        return self.sequence.shape[0]

    @property
    def canvases(self) -> int:
        """M, rows of the forward pass."""
        return self.owner.shape[0]

    def with_(self, **changes: Any) -> View:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def select(self, keep: Tensor) -> View | None:
        """The part that belongs to some sequences, or None if that is nothing.

        keep: bool [B], over the sequences of the batch. Canvases of other sequences leave the forward pass.
        """
        if bool(keep[self.owner].all()):
            return self
        canvas_kept = keep[self.owner]
        if not bool(canvas_kept.any()):
            return None
        index = canvas_kept.nonzero().squeeze(1)
        renumber = torch.full_like(self.owner, -1)
        renumber[index] = torch.arange(index.shape[0], device=index.device)
        length = self.attention_mask.shape[1]
        of = renumber[self.rows.long() // length]
        row_kept = of >= 0
        token_kept = keep[self.sequence]
        mix = None
        if self.mix is not None:
            token_number = token_kept.cumsum(0) - 1
            mix = Mix(token_number[self.mix.token[row_kept]], self.mix.coefficient[row_kept])
        whole = self.canvas
        parts = {
            name: value[token_kept]
            for name in ("sequence", "weight", "kl_weight", "advantage", "old_logp", "ref_logp", "importance")
            if (value := getattr(self, name)) is not None
        }
        return replace(
            self,
            canvas=lambda: whole()[index],
            attention_mask=self.attention_mask[index],
            rows=(of * length + self.rows.long() % length)[row_kept].to(torch.int32),
            targets=self.targets[row_kept],
            owner=self.owner[index],
            mix=mix,
            **parts,
        )


def token_view(
    canvas: Callable[[], Tensor],
    attention_mask: Tensor,
    scored: Tensor,
    targets: Tensor,
    *,
    weight: Tensor | float,
    kl_weight: Tensor | float | None = None,
    advantage: Tensor,
    step: int,
    old_logp: Tensor | None = None,
) -> View | None:
    """The view of one canvas a sequence: dense [B, L] tensors in, compact rows out; None where nothing is scored.

    Args:
        canvas: builds int64 [B, L].
        attention_mask, scored: bool [B, L]; sequences without a scored position take no part in the forward pass.
        targets: int64 [B, L]. weight, kl_weight (default: weight): numbers, or float32 [B] or [B, L].
        old_logp: float32 [B, L].
        advantage: float32 [B], or [B, L].
    """
    present = scored.any(1).nonzero().squeeze(1)
    if not present.numel():
        return None
    scored = scored[present]
    flat = scored.flatten().nonzero().squeeze(1)
    sequence = present[flat // scored.shape[1]]
    position = flat % scored.shape[1]

    def compact(dense: Tensor | float) -> Tensor:
        if not isinstance(dense, Tensor):
            return torch.full(flat.shape, dense, dtype=torch.float32, device=flat.device)
        return dense[sequence, position] if dense.ndim == 2 else dense[sequence]

    whole = present.shape[0] == attention_mask.shape[0]
    return View(
        canvas=canvas if whole else lambda: canvas()[present],
        attention_mask=attention_mask[present],
        rows=flat.to(torch.int32),
        targets=compact(targets),
        owner=present,
        sequence=sequence,
        weight=compact(weight).float(),
        kl_weight=compact(weight if kl_weight is None else kl_weight).float(),
        advantage=compact(advantage).float(),
        step=step,
        old_logp=None if old_logp is None else compact(old_logp).float(),
    )


def join(views: Sequence[View]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(input ids [M, L], attention mask [M, L], rows int32 [R], targets int64 [R]) of views as one forward pass."""
    mask = torch.cat([view.attention_mask for view in views])
    offset, rows = 0, []
    for view in views:
        rows.append(view.rows + offset * mask.shape[1])
        offset += view.canvases
    return torch.cat([v.canvas() for v in views]), mask, torch.cat(rows), torch.cat([v.targets for v in views])


def token_values(views: Sequence[View], of_rows: Tensor) -> list[Tensor]:
    """Per view, float32 [N]: the rows' values (of `join`), mixed where the view says so."""
    result, at = [], 0
    for view in views:
        values = of_rows[at : at + view.rows.shape[0]]
        at += view.rows.shape[0]
        if view.mix is not None:
            mixed = torch.zeros(view.tokens, dtype=values.dtype, device=values.device)
            values = mixed.index_add(0, view.mix.token, view.mix.coefficient * values)
        result.append(values)
    return result


def to_tensors(views: Sequence[View], prefix: str) -> dict[str, Tensor]:
    """What the views learned beside the trajectory (log-probs and weights), flat, ready for safetensors."""
    names = [f.name for f in fields(View) if f.name in ("old_logp", "ref_logp", "importance")]
    return {
        f"{prefix}.{number}.{name}": value.contiguous()
        for number, view in enumerate(views)
        for name in names
        if (value := getattr(view, name)) is not None
    }


def from_tensors(views: Sequence[View], tensors: dict[str, Tensor], prefix: str) -> list[View]:
    """The views with what `to_tensors` saved."""
    restored = []
    for number, view in enumerate(views):
        start = f"{prefix}.{number}."
        found: dict[str, Any] = {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}
        restored.append(replace(view, **found))
    return restored
