"""`linear_score_rows`: `score_rows` fused with the LM head, without the logits in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from mdlm_fast.ops import _arguments as arguments
from mdlm_fast.ops import _checks as checks
from mdlm_fast.ops._dispatch import call, define
from mdlm_fast.ops.score_rows import ALL_STATS, RowScores, as_row_scores, check_row_values, fake_scores

_OP = "linear_score_rows"


def linear_score_rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    rows: Tensor | None = None,
    *,
    row_sequence: Tensor | None = None,
    row_position: Tensor | None = None,
    temperature: Tensor | float | None = None,
    seeds: Tensor | int | None = None,
    step: Tensor | int = 0,
    forbidden_ids: Tensor | Iterable[int] | int | None = None,
    vocab_limit: int | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    sample: bool | None = None,
    normalize_over: str = "allowed",
    stats: Sequence[str] = ALL_STATS,
    stats_from: str = "raw",
    guidance_hidden: Tensor | None = None,
    guidance_rows: Tensor | None = None,
    guidance_scale: float = 0.0,
) -> RowScores:
    """The same as `score_rows(F.linear(hidden[rows], weight, bias))`, a tile of the vocabulary at a time.

    Logits are rounded to the input dtype, as F.linear would, then treated in fp32.

    Args:
        hidden: floating, [N, H] or [B, L, H], any strides.
        weight: same dtype, [V, H].
        bias: same dtype, [V], or None.
        rows: int32 or int64 [C], indices into the flattened leading dimensions of hidden, -1 = padding; None = all.
        guidance_hidden: unconditional hidden states, same dtype and width: logits are combined after the head.
        guidance_rows: int32 [C], their rows; default `rows`.
        Others: see `score_rows`.

    Returns, Raises: see `score_rows`.
    """
    check_head(_OP, hidden, weight, bias)
    leading, device = hidden.shape[:-1], hidden.device
    row = arguments.row_arguments(
        _OP, leading, device, rows, row_sequence, row_position, temperature, seeds, step, sample
    )
    forbidden, limit = arguments.vocabulary_arguments(_OP, weight.shape[0], device, forbidden_ids, vocab_limit)
    top_k, top_p = arguments.filter_arguments(_OP, top_k, top_p)
    guidance, guidance_index, scale = arguments.guidance_arguments(
        _OP, "guidance_hidden", guidance_hidden, hidden, guidance_rows, row.rows, guidance_scale
    )
    mask = arguments.stats_mask(_OP, stats)
    outputs = _linear_score_rows(
        hidden.detach(),
        weight.detach(),
        None if bias is None else bias.detach().contiguous(),
        *row[:6],
        forbidden,
        guidance,
        guidance_index,
        scale,
        limit,
        top_k,
        top_p,
        row.sample,
        arguments.choice(_OP, "normalize_over", normalize_over, "allowed", "all"),
        arguments.choice(_OP, "stats_from", stats_from, "raw", "tempered"),
        mask,
    )
    return as_row_scores(outputs, mask)


def check_head(op: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Refuse hidden states, weight and bias that F.linear would not take as they are."""
    checks.check_leading(op, "hidden", hidden)
    dtypes = (hidden.dtype,)
    checks.check_tensor(op, "weight", weight, (None, hidden.shape[-1]), dtypes, hidden.device)
    if weight.shape[0] == 0:
        raise ValueError(f"{op}: weight has no rows: shape {list(weight.shape)}")
    if bias is not None:
        checks.check_tensor(op, "bias", bias, (weight.shape[0],), dtypes, hidden.device)


def _run(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    row_sequence: Tensor,
    row_position: Tensor,
    temperature: Tensor,
    seeds: Tensor,
    step: Tensor,
    forbidden_ids: Tensor | None,
    guidance_hidden: Tensor | None,
    guidance_rows: Tensor | None,
    guidance_scale: float,
    *options: int | float | bool,
) -> tuple[Tensor, ...]:
    check_row_values(_OP, hidden.shape[:-1], weight.shape[0], rows, row_sequence, temperature, forbidden_ids)
    hidden, kernel_rows = arguments.with_unit_stride(hidden, rows)
    if guidance_hidden is not None and guidance_rows is not None:
        checks.check_range(_OP, "guidance_rows", guidance_rows, -1, guidance_hidden.shape[:-1].numel())
        guidance_hidden, guidance_rows = arguments.with_unit_stride(guidance_hidden, guidance_rows)
    outputs = call(
        _OP,
        hidden,
        hidden,
        weight,
        bias,
        kernel_rows,
        row_sequence,
        row_position,
        temperature,
        seeds,
        step,
        forbidden_ids,
        guidance_hidden,
        guidance_rows,
        guidance_scale,
        *options,
    )
    checks.check_tokens(_OP, outputs[0], rows, row_sequence, row_position)
    return outputs


def _fake(hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, *rest: object) -> tuple[Tensor, ...]:
    stats = rest[-1]
    assert isinstance(stats, int)
    return fake_scores(rows, stats)


_linear_score_rows = define(_OP, _run, _fake)
