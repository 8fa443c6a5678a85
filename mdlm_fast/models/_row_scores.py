"""Scoring rows of hidden states or logits: what RowHead computes inside the head's forward, and outside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mdlm_fast import ops
from mdlm_fast.models._patch import can_fuse
from mdlm_fast.rng import derive_seed, signed64


class Rows(NamedTuple):
    """Rows of one call: where the hidden states are, and whom they belong to."""

    source: Tensor  # int32 [C], flat index of the hidden row, -1 padding
    guidance: Tensor | None  # int32 [C], flat index of the unconditional hidden row
    length: int
    options: dict[str, Any]  # keyword arguments of ops.score_rows


def check_rows(name: str, rows: Tensor, length: int) -> None:
    """Refuse anything but int [C] rows and a positive length."""
    if rows.ndim != 1 or rows.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} must be int32 or int64 of shape [C], got {rows.dtype} of shape {tuple(rows.shape)}")
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")


def left_neighbour(rows: Tensor, length: int) -> Tensor:
    """Row l - 1 of the same sequence; the first row of a sequence and padding stay as they are."""
    return torch.where((rows > 0) & (rows % length > 0), rows - 1, rows)


def _canvas(tensor: Tensor, length: int) -> Tensor:
    """[B, L, X], from that or from [B*L, X]."""
    if tensor.ndim == 2 and tensor.shape[0] % length == 0:
        return tensor.unflatten(0, (-1, length))
    if tensor.ndim != 3 or tensor.shape[1] != length:
        raise ValueError(
            f"the model's output head saw or gave shape {tuple(tensor.shape)}; expected [B, length={length}, ...]. "
            "forward must return logits for every position"
        )
    return tensor


def gather(tensor: Tensor, source: Tensor, length: int) -> Tensor:
    """[C, X]: the rows `source` of [B, L, X] or [B*L, X]; padding gives row 0."""
    return _canvas(tensor, length).flatten(0, 1).index_select(0, source.clamp(min=0))


def gathered_logits(
    original: Callable[..., Tensor], hidden: Tensor, source: Tensor, length: int, args: Any, kwargs: Any
) -> Tensor:
    """[C, V]: the head's own forward on the gathered hidden rows, with as many dimensions as it is used to."""
    picked = gather(hidden, source, length)
    if hidden.ndim == 3:
        picked = picked[None]
    return original(picked, *args, **kwargs).flatten(0, -2)


def score_hidden(
    head: nn.Module, original: Callable[..., Tensor], hidden: Tensor, args: Any, kwargs: Any, rows: Rows
) -> ops.RowScores:
    """Scores of rows from inside the head's forward: the fused op for a plain linear head, else its own forward."""
    linear = _is_linear_call(original, args, kwargs)
    if linear and isinstance(head, nn.Linear) and can_fuse(hidden, head.weight, head.bias):
        canvas = _canvas(hidden, rows.length)
        return ops.linear_score_rows(
            canvas,
            head.weight,
            head.bias,
            rows.source,
            guidance_hidden=None if rows.guidance is None else canvas,
            guidance_rows=rows.guidance,
            **rows.options,
        )
    own = torch.arange(rows.source.shape[0], dtype=torch.int32, device=rows.source.device)
    local = torch.where(rows.source >= 0, own, rows.source)
    options = _with_seed_per_sequence(rows.options, hidden, rows.length)
    if rows.guidance is None:
        logits = gathered_logits(original, hidden, rows.source, rows.length, args, kwargs)
        return ops.score_rows(logits, local, **options)
    both = torch.cat([rows.source, rows.guidance])
    logits = gathered_logits(original, hidden, both, rows.length, args, kwargs)
    return ops.score_rows(logits, local, guidance_logits=logits, guidance_rows=own + own.shape[0], **options)


def logprobs_of_hidden(
    head: nn.Module,
    original: Callable[..., Tensor],
    hidden: Tensor,
    args: Any,
    kwargs: Any,
    rows: Rows,
    targets: Tensor,
    options: dict[str, Any],
    head_gradient: ops.HeadGradient | None,
) -> tuple[Tensor, Tensor]:
    """Log-probs of targets and entropies, float32 [C] each, from inside the head's forward, as `score_hidden`.

    options: temperature, forbidden_ids, vocab_limit, entropy_grad of `ops.token_logprobs`.
    head_gradient: collects the gradient of a plain linear head that is trained; None: it flows with the others.
    """
    if _is_linear_call(original, args, kwargs) and isinstance(head, nn.Linear):
        canvas, weight, bias = _cast_as_autocast_would(_canvas(hidden, rows.length), head.weight, head.bias)
        with torch.autocast(hidden.device.type, enabled=False):
            if can_fuse(canvas, weight, bias):
                # Under a frozen body hidden states have no graph, and log-probs would have none.
                trained = torch.is_grad_enabled() and head.weight.requires_grad and canvas.requires_grad
                if head_gradient is not None and trained:
                    picked = gather(canvas, rows.source, rows.length)
                    return head_gradient.logprobs(picked, head.weight, head.bias, targets, **options)
                return ops.linear_token_logprobs(canvas, weight, bias, rows.source, targets, **options)
    logits = gathered_logits(original, hidden, rows.source, rows.length, args, kwargs)
    own = torch.arange(rows.source.shape[0], dtype=torch.int32, device=rows.source.device)
    return ops.token_logprobs(logits, torch.where(rows.source >= 0, own, rows.source), targets, **options)


def _cast_as_autocast_would(
    hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands of a linear layer in autocast's dtype, if it is on: training in bfloat16 with float32 weights."""
    kind = hidden.device.type
    if not torch.is_autocast_enabled(kind):
        return hidden, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _with_seed_per_sequence(options: dict[str, Any], hidden: Tensor, length: int) -> dict[str, Any]:
    """The options with an int seed spread over the sequences, which gathered logits [C, V] no longer show."""
    seeds = options.get("seeds")
    if not isinstance(seeds, int):
        return options
    temperature = options.get("temperature")
    sequences = _canvas(hidden, length).shape[0]
    if isinstance(temperature, Tensor) and temperature.numel() > 1:
        sequences = temperature.numel()
    keys = torch.arange(sequences, device=hidden.device)
    return {**options, "seeds": derive_seed(signed64(seeds), keys)}


def _is_linear_call(original: Callable[..., Tensor], args: Any, kwargs: Any) -> bool:
    """Whether the forward under our patch is `nn.Linear`'s own, called with nothing but the hidden states."""
    return getattr(original, "__func__", None) is nn.Linear.forward and not args and not kwargs


def score_logits(logits: Tensor, rows: Rows) -> ops.RowScores:
    """Scores of rows of full logits."""
    canvas = _canvas(logits, rows.length)
    return ops.score_rows(
        canvas,
        rows.source,
        guidance_logits=None if rows.guidance is None else canvas,
        guidance_rows=rows.guidance,
        **rows.options,
    )
