"""`score_rows`: what a decoder needs to know about each row of logits, in one read of the row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mdlm_fast.ops import _arguments as arguments
from mdlm_fast.ops import _checks as checks
from mdlm_fast.ops._dispatch import call, define
from mdlm_fast.ops._schemas import STAT_BITS

_OP = "score_rows"
ALL_STATS = ("token", "logp", "logp_T", "margin", "entropy")


class RowScores(NamedTuple):
    """Per-row results; a statistic that was not asked for is None.

    Attributes:
        token: int64 [C], the chosen id; -1 for padding.
        logp: f32 [C], log-probability of `token` at temperature 1, before top-k and top-p; nats; -inf for padding.
        logp_T: f32 [C], log-probability of `token` in the tempered, filtered distribution (T = 0: T = 1 after the
            filters); nats; -inf for padding.
        margin: f32 [C], p(best) - p(second best) over the candidates; 0 for padding.
        entropy: f32 [C], nats; 0 for padding.
    """

    token: Tensor
    logp: Tensor | None
    logp_T: Tensor | None
    margin: Tensor | None
    entropy: Tensor | None


def as_row_scores(outputs: Sequence[Tensor], stats: int) -> RowScores:
    """Outputs of a scoring op with those not asked for replaced by None."""
    pairs = zip(ALL_STATS[1:], outputs[1:], strict=True)
    return RowScores(outputs[0], *(output if stats & STAT_BITS[name] else None for name, output in pairs))


def score_rows(
    logits: Tensor,
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
    guidance_logits: Tensor | None = None,
    guidance_rows: Tensor | None = None,
    guidance_scale: float = 0.0,
) -> RowScores:
    """Choose a token for each row of logits and say how sure the model is of it.

    `score_rows(logits)` is greedy over every row. Statistics are computed in fp32 whatever the dtype and are not
    differentiable (`token_logprobs` is).

    Args:
        logits: float32, bfloat16, float16 (or float64, rounded to fp32), [N, V] or [B, L, V], any strides.
        rows: int32 or int64 [C], indices into the flattened leading dimensions, -1 = padding; None = all rows, in
            order.
        row_sequence: int32 [C], sequence of each row; default row // L for [B, L, V], 0 for [N, V].
        row_position: int32 [C], position used for random numbers; default row % L for [B, L, V], the row for [N, V].
            Count real tokens only, so that padding changes nothing.
        temperature: float or tensor [B], >= 0; 0 = greedy. None = greedy.
        seeds: int64 tensor [B], the 64-bit key of each sequence. An int stands for `rng.derive_seed(seeds, b)`; None
            is 0.
        step: int or integer tensor [1] or [B], the step index used for random numbers.
        forbidden_ids: ids that are never chosen: a tensor, an int or a list.
        vocab_limit: ids >= vocab_limit are never chosen; default V.
        top_k: keep the k most likely candidates and all ties with the last of them; 0 or None = off.
        top_p: keep the smallest set of most likely candidates that holds this share of the probability (after
            temperature), and all ties; in (0, 1]; 1 or None = off. Applied before top_k; both apply at temperature 0
            too, where they change `logp_T`.
        sample: False = argmax whatever the temperature. Default: whether a temperature other than the number 0 is
            given.
        normalize_over: "allowed" = probabilities over the candidates; "all" = over the whole vocabulary, as published
            decoders do.
        stats: which of token, logp, logp_T, margin, entropy to compute; token always is.
        stats_from: "raw" = margin and entropy of the plain distribution; "tempered" = of the tempered and filtered one.
        guidance_logits: unconditional logits, same dtype and width: z = (s + 1) logits - s guidance_logits in fp32.
        guidance_rows: int32 [C], their rows; default `rows`.
        guidance_scale: s.

    Returns:
        RowScores. Greedy ties go to the lowest id; a sampled token is an exact draw by inverse CDF (see
        `mdlm_fast.rng`).

    Raises:
        ValueError: wrong shapes, devices or values; on CPU also a row that holds NaN or +inf or has no candidate left.
        TypeError: wrong dtypes.

    Source: confidence and EOS handling as in LLaDA (arXiv:2502.09992); filters and tempered statistics as in Dream
    (arXiv:2508.15487).
    """
    checks.check_leading(_OP, "logits", logits)
    leading, device = logits.shape[:-1], logits.device
    row = arguments.row_arguments(
        _OP, leading, device, rows, row_sequence, row_position, temperature, seeds, step, sample
    )
    forbidden, limit = arguments.vocabulary_arguments(_OP, logits.shape[-1], device, forbidden_ids, vocab_limit)
    top_k, top_p = arguments.filter_arguments(_OP, top_k, top_p)
    guidance, guidance_index, scale = arguments.guidance_arguments(
        _OP, "guidance_logits", guidance_logits, logits, guidance_rows, row.rows, guidance_scale
    )
    mask = arguments.stats_mask(_OP, stats)
    outputs = _score_rows(
        logits.detach(),
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


def _run(
    logits: Tensor,
    rows: Tensor,
    row_sequence: Tensor,
    row_position: Tensor,
    temperature: Tensor,
    seeds: Tensor,
    step: Tensor,
    forbidden_ids: Tensor | None,
    guidance_logits: Tensor | None,
    guidance_rows: Tensor | None,
    guidance_scale: float,
    *options: int | float | bool,
) -> tuple[Tensor, ...]:
    check_row_values(_OP, logits.shape[:-1], logits.shape[-1], rows, row_sequence, temperature, forbidden_ids)
    logits, kernel_rows = arguments.with_unit_stride(logits, rows)
    if guidance_logits is not None and guidance_rows is not None:
        checks.check_range(_OP, "guidance_rows", guidance_rows, -1, guidance_logits.shape[:-1].numel())
        guidance_logits, guidance_rows = arguments.with_unit_stride(guidance_logits, guidance_rows)
    outputs = call(
        _OP,
        logits,
        logits,
        kernel_rows,
        row_sequence,
        row_position,
        temperature,
        seeds,
        step,
        forbidden_ids,
        guidance_logits,
        guidance_rows,
        guidance_scale,
        *options,
    )
    checks.check_tokens(_OP, outputs[0], rows, row_sequence, row_position)
    return outputs


def check_row_values(
    op: str,
    leading: torch.Size,
    vocab_size: int,
    rows: Tensor,
    row_sequence: Tensor,
    temperature: Tensor,
    forbidden_ids: Tensor | None,
) -> None:
    """Value checks that all scoring ops share (CPU only)."""
    if rows.device.type != "cpu":
        return
    checks.check_range(op, "rows", rows, -1, leading.numel())
    if temperature.numel() > 1:
        checks.check_range(op, "row_sequence", torch.where(rows >= 0, row_sequence, 0), 0, temperature.numel())
    else:
        checks.check_range(op, "row_sequence", row_sequence, -1, 1)
    checks.check_range(op, "forbidden_ids", forbidden_ids, 0, vocab_size)
    checks.check_temperature(op, temperature)


def fake_scores(rows: Tensor, stats: int) -> tuple[Tensor, ...]:
    """Shapes of the outputs of a scoring op."""
    shapes = [rows.shape if stats & STAT_BITS[name] else (0,) for name in ALL_STATS[1:]]
    return rows.new_empty(rows.shape, dtype=torch.int64), *(rows.new_empty(s, dtype=torch.float32) for s in shapes)


def _fake(logits: Tensor, rows: Tensor, *rest: object) -> tuple[Tensor, ...]:
    stats = rest[-1]
    assert isinstance(stats, int)
    return fake_scores(rows, stats)


_score_rows = define(_OP, _run, _fake)
