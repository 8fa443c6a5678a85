"""What a row's scores must not depend on, and what becomes of rows that cannot be scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from parity.inputs import random_rows, seeded, whole_numbers
from parity.measure import Case, Check, Measurement, Target, differing
from torch import Tensor

from mdlm_fast import ops
from mdlm_fast.ops import RowScores

Score = Callable[[Tensor, dict[str, Any]], RowScores]
NAN_ROW, INF_ROW, EMPTY_ROW = -2, -3, -4
SCORING = ("score_rows", "linear_score_rows")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"temperature": torch.tensor([0.8]), "seeds": torch.tensor([77]), "step": torch.tensor([4])},
    "filtered": {
        "temperature": torch.tensor([1.1]),
        "seeds": torch.tensor([5]),
        "top_k": 30,
        "top_p": 0.9,
        "stats_from": "tempered",
    },
}


def scorer(op: str, width: int, dtype: torch.dtype, target: Target) -> tuple[Score, int]:
    """(how to score inputs [N, X], X): the logits, or hidden states in front of a head."""
    if op == "score_rows":
        return lambda x, options: ops.score_rows(x, **options), width
    depth = 48
    weight = target.put(whole_numbers(seeded(op, width), width, depth, depth=depth).to(dtype))
    return lambda x, options: ops.linear_score_rows(x, weight, **options), depth


def check_invariance(op: str, dtype: torch.dtype, width: int, count: int, mode: str, target: Target) -> Iterator:
    """Bit equality of a row's scores alone, in any order, among padding, in any place, with fewer statistics."""
    options = target.put(OPTIONS[mode])
    score, depth = scorer(op, width, dtype, target)
    g = seeded(op, width, count, mode)
    host = random_rows(g, count, depth) if op == "score_rows" else whole_numbers(g, count, depth, depth=depth)
    inputs = target.put(host.to(dtype))
    order = torch.randperm(count, generator=g).int()
    slots = torch.cat([order, order.new_full((3,), -1)])[torch.randperm(count + 3, generator=g)]
    with ops.use_backend(target.backend):
        whole = RowScores(*(x.cpu() for x in score(inputs, options)))
        permuted = score(inputs, {**options, "rows": target.put(slots)})
        for name, a, b in zip(whole._fields, permuted, whole, strict=True):
            yield differing(f"{name}, other order", a.cpu()[slots >= 0], b[slots[slots >= 0].long()])
        tokens = score(inputs, {**options, "stats": ()}).token
        yield differing("token, no statistics", tokens, whole.token)
        # Few rows and many may meet different GEMMs, whose logits are equal here but not the order of their statistics.
        for row in {0, count // 2, count - 1} if op == "score_rows" or count <= 64 else ():
            position = target.put(torch.tensor([row], dtype=torch.int32))
            alone = score(inputs[row : row + 1].clone(), {**options, "row_position": position})
            for name, a, b in zip(whole._fields, alone, whole, strict=True):
                yield differing(f"{name}, row {row} alone", a, b[row : row + 1])


def check_bad_rows(op: str, dtype: torch.dtype, target: Target) -> Iterator[Measurement]:
    """A row with NaN or +inf or without candidates gets its code and NaN, its neighbours what they get without it.
    On the CPU the op raises instead."""
    width, count = (2300, 9) if op == "score_rows" else (2100, 9)
    score, depth = scorer(op, width, dtype, target)
    g = seeded(op, "bad")
    host = random_rows(g, count, depth) if op == "score_rows" else whole_numbers(g, count, depth, depth=depth)
    clean = host.to(dtype)
    bad = clean.clone()
    codes = {1: NAN_ROW}
    bad[1, depth - 1] = torch.nan
    if op == "score_rows":
        codes |= {3: INF_ROW, 4: EMPTY_ROW, 7: NAN_ROW}
        bad[3, 2048], bad[4], bad[7, 0] = torch.inf, -torch.inf, torch.nan
    good = [row for row in range(count) if row not in codes]
    with ops.use_backend(target.backend):
        for mode in ("greedy", "filtered") if target.interpreted else ("greedy", *OPTIONS):
            options = target.put(OPTIONS.get(mode, {}))
            if target.device == "cpu":
                for row in codes:
                    rows = torch.tensor([0, row], dtype=torch.int32)
                    yield raises(f"{mode}, row {row}", lambda rows=rows: score(bad, {**options, "rows": rows}))  # noqa: B023
                rows = torch.tensor(good, dtype=torch.int32)
                expected, ours = score(clean, {**options, "rows": rows}), score(bad, {**options, "rows": rows})
                for name, a, b in zip(ours._fields, ours, expected, strict=True):
                    yield differing(f"{mode}, {name} beside bad rows", a, b)
                continue
            expected, ours = (RowScores(*(x.cpu() for x in score(target.put(x), options))) for x in (clean, bad))
            yield differing(f"{mode}, codes", ours.token[list(codes)], torch.tensor(list(codes.values())))
            for name, a, b in zip(ours._fields, ours, expected, strict=True):
                yield differing(f"{mode}, {name} beside bad rows", a[good], b[good])
                if name != "token":
                    yield Measurement(f"{mode}, {name} of bad rows", float((~a[list(codes)].isnan()).sum()))


def raises(what: str, call: Callable[[], object]) -> Measurement:
    try:
        call()
    except ValueError as error:
        return Measurement(f"{what}: {error}", 0.0 if "the row of logits" in str(error) else 1.0)
    return Measurement(f"{what}: no error", 1.0)


def row_cases() -> Iterator[Case]:
    shapes = ((5001, 70), (126464, 40), (31, 600))
    for op in SCORING:
        for dtype in (torch.bfloat16, torch.float32):
            for mode in OPTIONS:
                for width, count in shapes:
                    name = f"invariance, {mode} [{count}, {width}]"
                    yield Case(op, name, dtype, (op,), _build(check_invariance, op, dtype, width, count, mode))
                short = op == "score_rows" and dtype == torch.bfloat16 and mode == "filtered"
                build = _build(check_invariance, op, dtype, 2100, 5, mode)
                yield Case(op, f"invariance, {mode} [5, 2100]", dtype, (op,), build, short)
            yield Case(op, "bad rows", dtype, (op,), _build(check_bad_rows, op, dtype), dtype == torch.bfloat16)


def _build(check: Callable[..., Iterator[Measurement]], *arguments: Any) -> Callable[[], Check]:
    return lambda: lambda target: check(*arguments, target)
