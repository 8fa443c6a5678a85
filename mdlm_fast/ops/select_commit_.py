"""`select_commit_`: one denoising step's choice of positions, written to the canvas and the record in place."""

from __future__ import annotations

import torch
from torch import Tensor

from mdlm_fast.ops import _checks as checks
from mdlm_fast.ops._commit_arguments import check_canvas, contiguous_call
from mdlm_fast.ops._dispatch import define

_OP = "select_commit_"
RULES = ("quota", "threshold", "factor", "entropy_bound", "quota_threshold", "origin")
DISCOUNTS = ("none", "log", "multiply")


def select_commit_(
    canvas: Tensor,
    masked: Tensor,
    rows: Tensor,
    token: Tensor,
    confidence: Tensor,
    *,
    rule: str = "quota",
    quota: Tensor | None = None,
    threshold: Tensor | None = None,
    entropy: Tensor | None = None,
    discount: str = "none",
    gamma: Tensor | None = None,
    eos_ids: Tensor | None = None,
    alg_temp: float = 0.0,
    row_position: Tensor | None = None,
    seeds: Tensor | None = None,
    step: Tensor | int = 0,
    logp: Tensor | None = None,
    logp_T: Tensor | None = None,
    commit_step: Tensor | None = None,
    commit_logp: Tensor | None = None,
    commit_logp_T: Tensor | None = None,
    commit_confidence: Tensor | None = None,
    masks_left: Tensor | None = None,
    done: Tensor | None = None,
    next_rows: Tensor | None = None,
    num_next_rows: Tensor | None = None,
) -> None:
    """Choose positions by confidence and commit their tokens, in place.

    A candidate is a slot whose row is not padding, whose token is >= 0 and whose position is still masked. Within a
    sequence candidates are ranked by confidence, equal ones by position; nothing outside them is ever written.

    Args:
        canvas: int64 [B, L], written.
        masked: bool [B, L], written: False where a token is committed.
        rows: int32 [C], flat canvas index b * L + l of each slot, -1 = padding; any order, no duplicates.
        token: int64 [C], the token each slot would commit.
        confidence: f32 [C], higher first.
        rule: "quota": the best quota[b]. "threshold": all >= threshold[b], at least the best. "factor": by rank r while
            exp(confidence) >= 1 - threshold[b] / (r + 1), at least the best; confidence is a log-probability.
            "entropy_bound": by entropy ascending while the sum of the entropies before is <= threshold[b], at least
            one. "quota_threshold": all > threshold[b] if they are at least quota[b], else the best quota[b].
            "origin": each with probability threshold[b].
        quota: int32 [B], >= 0.
        threshold: f32 [B]; "threshold" and "quota_threshold" compare it in the units of confidence.
        entropy: f32 [C], nats; for "entropy_bound".
        discount: what to do to the confidence where the token is in eos_ids: "log" adds log gamma[b], "multiply"
            multiplies by gamma[b]. gamma = 0 in log space ranks last and is still a candidate. The record keeps the
            undiscounted value.
        gamma: f32 [B].
        eos_ids: int64 [K].
        alg_temp: > 0 ranks by confidence / alg_temp + Gumbel noise, i.e. samples positions without replacement.
        row_position: int32 [C], position for random numbers; default: the canvas position.
        seeds: int64 [B], for alg_temp and "origin".
        step: int or int32 tensor [1] or [B], the step index.
        logp, logp_T: f32 [C], copied to commit_logp and commit_logp_T.
        commit_step: int16 [B, L], written with the step. commit_logp, commit_logp_T, commit_confidence: f32 [B, L],
            written.
        masks_left: int32 [B], written with the number of masks in each canvas row. done: bool [B], written: no mask
            left.
        next_rows: int32 [C], written with the rows still masked, in their order, -1 behind. num_next_rows: int32 [1].

    Raises:
        ValueError, TypeError: wrong shapes, dtypes, devices or values, an unknown rule, an argument the rule needs is
            missing.
    """
    device = check_canvas(_OP, canvas, masked)
    sequences, length = canvas.shape
    _check_rule(rule, discount, alg_temp, quota, threshold, entropy, gamma, eos_ids, seeds)
    checks.check_tensor(_OP, "rows", rows, (None,), (torch.int32,), device)
    slots = (rows.shape[0],)
    per_sequence = (sequences,)
    for name, value, shape, dtype in (
        ("token", token, slots, torch.int64),
        ("confidence", confidence, slots, torch.float32),
        ("logp", logp, slots, torch.float32),
        ("logp_T", logp_T, slots, torch.float32),
        ("entropy", entropy, slots, torch.float32),
        ("row_position", row_position, slots, torch.int32),
        ("next_rows", next_rows, slots, torch.int32),
        ("quota", quota, per_sequence, torch.int32),
        ("threshold", threshold, per_sequence, torch.float32),
        ("gamma", gamma, per_sequence, torch.float32),
        ("seeds", seeds, per_sequence, torch.int64),
        ("masks_left", masks_left, per_sequence, torch.int32),
        ("done", done, per_sequence, torch.bool),
        ("eos_ids", eos_ids, (None,), torch.int64),
        ("num_next_rows", num_next_rows, (1,), torch.int32),
        ("commit_step", commit_step, (sequences, length), torch.int16),
        ("commit_logp", commit_logp, (sequences, length), torch.float32),
        ("commit_logp_T", commit_logp_T, (sequences, length), torch.float32),
        ("commit_confidence", commit_confidence, (sequences, length), torch.float32),
    ):
        if value is not None:
            checks.check_tensor(_OP, name, value, shape, (dtype,), device)
    if commit_logp is not None and logp is None:
        raise ValueError(f"{_OP}: commit_logp is written from logp, which is None")
    if commit_logp_T is not None and logp_T is None:
        raise ValueError(f"{_OP}: commit_logp_T is written from logp_T, which is None")
    if not isinstance(step, Tensor):
        step = torch.full((1,), step, dtype=torch.int32, device=device)
    elif step.numel() not in (1, sequences) or step.dim() != 1 or step.dtype != torch.int32:
        raise ValueError(
            f"{_OP}: step must be an int or int32 [1] or [{sequences}], got {step.dtype} {list(step.shape)}"
        )
    if row_position is None and (rule == "origin" or alg_temp > 0):
        row_position = torch.remainder(rows, max(length, 1))
    _select_commit_(
        canvas,
        masked,
        rows,
        token,
        confidence,
        logp,
        logp_T,
        entropy,
        quota,
        threshold,
        gamma,
        eos_ids,
        row_position,
        seeds,
        step,
        commit_step,
        commit_logp,
        commit_logp_T,
        commit_confidence,
        masks_left,
        done,
        next_rows,
        num_next_rows,
        rule,
        discount,
        float(alg_temp),
    )


def _check_rule(
    rule: str,
    discount: str,
    alg_temp: float,
    quota: Tensor | None,
    threshold: Tensor | None,
    entropy: Tensor | None,
    gamma: Tensor | None,
    eos_ids: Tensor | None,
    seeds: Tensor | None,
) -> None:
    if rule not in RULES:
        raise ValueError(f"{_OP}: rule={rule!r} is unknown: choose one of {', '.join(RULES)}")
    if discount not in DISCOUNTS:
        raise ValueError(f"{_OP}: discount={discount!r} is unknown: choose one of {', '.join(DISCOUNTS)}")
    if not 0.0 <= alg_temp < float("inf"):
        raise ValueError(f"{_OP}: alg_temp={alg_temp} must be finite and >= 0")
    needed = {
        "quota": quota is not None or rule not in ("quota", "quota_threshold"),
        "threshold": threshold is not None or rule == "quota",
        "entropy": entropy is not None or rule != "entropy_bound",
        "gamma": gamma is not None or discount == "none",
        "eos_ids": eos_ids is not None or discount == "none",
        "seeds": seeds is not None or (rule != "origin" and alg_temp == 0),
    }
    for name, there in needed.items():
        if not there:
            raise ValueError(
                f"{_OP}: rule={rule!r}, discount={discount!r}, alg_temp={alg_temp} needs {name}, which is None"
            )


def _run(*arguments: Tensor | str | float | None) -> None:
    canvas, _, rows = arguments[:3]
    assert isinstance(canvas, Tensor) and isinstance(rows, Tensor)
    checks.check_range(_OP, "rows", rows, -1, canvas.numel())
    contiguous_call(_OP, arguments)


def _fake(*arguments: Tensor | str | float | None) -> None:
    return None


_select_commit_ = define(_OP, _run, _fake)
