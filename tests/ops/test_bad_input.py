"""Every op refuses bad input with one error that names the argument and the value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mdlm_fast import ops

LOGITS = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
HIDDEN = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
WEIGHT = torch.randn(50, 4, generator=torch.Generator().manual_seed(2))
INT32 = torch.int32


def refuses(error: type[Exception], message: str, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
    with pytest.raises(error, match=message):
        call(*arguments, **keywords)


@pytest.mark.ops("score_rows")
@pytest.mark.parametrize(
    "error,message,keywords",
    (
        (ValueError, r"rows\[1\] = 6 is outside \[-1, 6\)", {"rows": torch.tensor([0, 6], dtype=INT32)}),
        (ValueError, r"rows\[0\] = -2 is outside", {"rows": torch.tensor([-2], dtype=INT32)}),
        (ValueError, r"rows\[1\] = 2147483647 is outside", {"rows": torch.tensor([0, 2**32 + 1])}),
        (TypeError, r"rows must be .*int32.*float32", {"rows": torch.tensor([0.0])}),
        (ValueError, r"rows must have shape \[any\], got \[1, 1\]", {"rows": torch.zeros(1, 1, dtype=INT32)}),
        (TypeError, "rows must be a tensor, got list", {"rows": [0]}),
        (ValueError, "temperature=-0.5", {"temperature": -0.5}),
        (ValueError, "temperature=nan", {"temperature": float("nan")}),
        (ValueError, r"temperature\[1\] = -1.0", {"temperature": torch.tensor([0.0, -1.0])}),
        (ValueError, r"temperature\[0\] = nan", {"temperature": torch.tensor([float("nan"), 0.0])}),
        (ValueError, "number of sequences differs.*temperature 3.*logits 2", {"temperature": torch.ones(3)}),
        (TypeError, "temperature must be a float.*int64", {"temperature": torch.ones(2, dtype=torch.int64)}),
        (TypeError, "seeds must be an int or an int64", {"temperature": 1.0, "seeds": torch.ones(2)}),
        (ValueError, "number of sequences differs", {"temperature": 1.0, "seeds": torch.tensor([1, 2, 3])}),
        (TypeError, "step must be", {"step": torch.tensor([0.5])}),
        (ValueError, "top_p=0.0", {"top_p": 0.0}),
        (ValueError, "top_p=1.5", {"top_p": 1.5}),
        (ValueError, "top_k=-1", {"top_k": -1}),
        (ValueError, "vocab_limit=51 must be between 1 and the width of the logits, 50", {"vocab_limit": 51}),
        (ValueError, "vocab_limit=0", {"vocab_limit": 0}),
        (ValueError, r"forbidden_ids\[1\] = 50 is outside \[0, 50\)", {"forbidden_ids": [3, 50]}),
        (ValueError, r"forbidden_ids\[0\] = -1", {"forbidden_ids": -1}),
        (TypeError, "forbidden_ids must be integers", {"forbidden_ids": torch.tensor([0.5])}),
        (ValueError, "normalize_over='some' must be 'allowed' or 'all'", {"normalize_over": "some"}),
        (ValueError, "stats_from='cold'", {"stats_from": "cold"}),
        (ValueError, "stats has 'perplexity'", {"stats": ("perplexity",)}),
        (ValueError, "guidance_scale=2.0 and guidance_rows need guidance_logits", {"guidance_scale": 2.0}),
        (ValueError, r"guidance_logits must have shape .*50", {"guidance_logits": LOGITS[..., :40]}),
        (ValueError, "guidance_logits must be torch.float32", {"guidance_logits": LOGITS.bfloat16()}),
        (
            ValueError,
            r"guidance_rows\[0\] = 6 is outside",
            {"rows": torch.tensor([0], dtype=INT32), "guidance_logits": LOGITS, "guidance_rows": torch.tensor([6])},
        ),
        (ValueError, r"row_sequence\[1\] = 2 is outside \[0, 2\)", {"row_sequence": torch.tensor([0, 2, 0, 0, 0, 0])}),
        (ValueError, r"row_position must have shape \[6\], got \[2\]", {"row_position": torch.zeros(2, dtype=INT32)}),
    ),
)
def test_score_rows_refuses(backend: str, error: type[Exception], message: str, keywords: dict[str, Any]) -> None:
    if "row_sequence" in keywords:
        keywords = {**keywords, "temperature": torch.ones(2)}
    refuses(error, message, ops.score_rows, LOGITS, **keywords)


@pytest.mark.ops("score_rows")
def test_logits_of_the_wrong_kind(backend: str) -> None:
    refuses(TypeError, "logits must be float32.*got torch.int64", ops.score_rows, torch.zeros(2, 3, dtype=torch.int64))
    refuses(ValueError, r"logits must have shape .* got \[5\]", ops.score_rows, torch.zeros(5))
    refuses(ValueError, r"got \[5, 0\]", ops.score_rows, torch.zeros(5, 0))
    refuses(TypeError, "logits must be a tensor, got list", ops.score_rows, [[1.0]])
    sequences = torch.tensor([0, 1], dtype=INT32)
    refuses(
        ValueError,
        "pass seeds as an int64 tensor",
        ops.score_rows,
        LOGITS[0, :2],
        row_sequence=sequences,
        temperature=1.0,
    )


@pytest.mark.ops("score_rows", "linear_score_rows")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize(
    "value,column,reason",
    (
        (float("nan"), 0, "holds NaN"),
        (float("nan"), 2049, "holds NaN"),
        (float("nan"), 4999, "holds NaN"),
        (float("inf"), 3, r"holds \+inf"),
        (float("inf"), 4998, r"holds \+inf"),
    ),
)
def test_trap_n5_nan_and_infinity_name_the_row(
    backend: str, dtype: torch.dtype, value: float, column: int, reason: str
) -> None:
    logits = torch.randn(2, 4, 5000, generator=torch.Generator().manual_seed(3)).to(dtype)
    logits[1, 2, column] = value
    for arguments in ({}, {"temperature": 0.7, "seeds": 1}, {"top_k": 3}, {"normalize_over": "all"}, {"stats": ()}):
        refuses(
            ValueError, rf"row of logits 6 \(sequence 1, position 2\) {reason}", ops.score_rows, logits, **arguments
        )
    rows = torch.tensor([0, 5, -1], dtype=INT32)
    assert ops.score_rows(logits, rows).token[2] == -1  # a row that is not scored does no harm
    weight = torch.eye(3, dtype=dtype)
    hidden = torch.tensor([[0.0, 1.0, 2.0], [0.0, value, 0.0]]).to(dtype)
    refuses(ValueError, "row of logits 1 .* holds NaN", ops.linear_score_rows, hidden, weight)  # inf * 0 is NaN


@pytest.mark.ops("score_rows")
def test_a_row_without_candidates_names_itself(backend: str) -> None:
    logits = torch.zeros(3, 2100)
    logits[1] = -torch.inf
    refuses(ValueError, r"row of logits 1 .* has no candidate left", ops.score_rows, logits)
    logits = torch.zeros(2, 6)
    refuses(ValueError, "has no candidate left", ops.score_rows, logits, forbidden_ids=list(range(6)))
    refuses(ValueError, "has no candidate left", ops.score_rows, logits, forbidden_ids=[0, 1], vocab_limit=2)
    logits[1, :5] = -torch.inf
    refuses(
        ValueError, "row of logits 1", ops.score_rows, logits, forbidden_ids=[5], normalize_over="all", temperature=1.0
    )


@pytest.mark.ops("linear_score_rows", "linear_token_logprobs")
def test_heads_that_do_not_fit(backend: str) -> None:
    refuses(ValueError, r"weight must have shape \[any, 4\]", ops.linear_score_rows, HIDDEN, WEIGHT[:, :3])
    refuses(TypeError, "weight must be torch.float32", ops.linear_score_rows, HIDDEN, WEIGHT.bfloat16())
    refuses(
        ValueError, r"bias must have shape \[50\], got \[49\]", ops.linear_score_rows, HIDDEN, WEIGHT, WEIGHT[:49, 0]
    )
    refuses(ValueError, "weight has no rows", ops.linear_score_rows, HIDDEN, WEIGHT[:0])
    targets = torch.zeros(6, dtype=torch.int64)
    refuses(
        ValueError,
        r"targets\[0\] = 0 is in forbidden_ids",
        ops.linear_token_logprobs,
        HIDDEN,
        WEIGHT,
        None,
        None,
        targets,
        1.0,
        0,
    )


@pytest.mark.ops("token_logprobs")
@pytest.mark.parametrize(
    "error,message,changes",
    (
        (ValueError, r"targets\[2\] = 50 is outside \[0, 50\)", {"targets": torch.tensor([0, 1, 50])}),
        (ValueError, r"targets must have shape \[3\], got \[2\]", {"targets": torch.tensor([0, 1])}),
        (TypeError, "targets must be", {"targets": torch.ones(3)}),
        (ValueError, r"rows\[0\] = 9 is outside", {"rows": torch.tensor([9, 0, 0])}),
        (ValueError, "temperature=0 must be finite and > 0", {"temperature": 0}),
        (ValueError, r"temperature\[1\] = 0.0", {"temperature": torch.tensor([1.0, 0.0, 1.0])}),
        (ValueError, r"temperature must be a float or a floating tensor", {"temperature": torch.ones(2)}),
        (ValueError, r"targets\[1\] = 1 is in forbidden_ids", {"forbidden_ids": [1, 7]}),
        (ValueError, r"targets\[2\] = 2 .* vocab_limit=2", {"vocab_limit": 2}),
        (ValueError, "vocab_limit=90", {"vocab_limit": 90}),
    ),
)
def test_token_logprobs_refuses(backend: str, error: type[Exception], message: str, changes: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"rows": torch.arange(3), "targets": torch.arange(3), **changes}
    refuses(error, message, ops.token_logprobs, LOGITS, **arguments)


@pytest.mark.ops("token_logprobs")
def test_token_logprobs_bad_rows(backend: str) -> None:
    for value, reason in ((float("nan"), "NaN"), (float("inf"), r"\+inf"), (-float("inf"), "no candidate")):
        logits = LOGITS.clone()
        if value < 0:
            logits[1, 0] = value
        else:
            logits[1, 0, 49] = value
        refuses(
            ValueError,
            f"row of logits 3 .*{reason}",
            ops.token_logprobs,
            logits,
            torch.tensor([0, 3]),
            torch.tensor([1, 1]),
        )


@pytest.mark.ops("score_partials", "finish_scores")
def test_partials_refuse(backend: str) -> None:
    refuses(ValueError, "vocab_start=100 must be a multiple of 2048", ops.score_partials, LOGITS, vocab_start=100)
    partials = ops.score_partials(LOGITS)
    refuses(ValueError, "pass either logits, or hidden and weight", ops.finish_scores, partials)
    refuses(ValueError, "pass either logits", ops.finish_scores, partials, logits=LOGITS, hidden=HIDDEN, weight=WEIGHT)
    refuses(ValueError, r"partials must have shape \[6, 1, 8\]", ops.finish_scores, partials[:5], logits=LOGITS)
    bad = LOGITS.clone()
    bad[0, 1, 7] = float("nan")
    refuses(ValueError, "row of logits 1 .* NaN", ops.finish_scores, ops.score_partials(bad), logits=bad)


@pytest.mark.ops("select_commit_")
@pytest.mark.parametrize(
    "error,message,changes",
    (
        (ValueError, "rule='best' is unknown", {"rule": "best"}),
        (ValueError, "discount='half' is unknown", {"discount": "half"}),
        (ValueError, "alg_temp=-1.0", {"alg_temp": -1.0}),
        (ValueError, "needs quota", {"quota": None}),
        (ValueError, "needs threshold", {"rule": "factor"}),
        (ValueError, "needs entropy", {"rule": "entropy_bound", "threshold": torch.zeros(2)}),
        (ValueError, "needs gamma", {"discount": "log"}),
        (ValueError, "needs seeds", {"alg_temp": 0.5}),
        (ValueError, r"quota must have shape \[2\]", {"quota": torch.ones(3, dtype=INT32)}),
        (TypeError, "quota must be torch.int32", {"quota": torch.ones(2)}),
        (ValueError, r"rows\[1\] = 6 is outside \[-1, 6\)", {"rows": torch.tensor([0, 6], dtype=INT32)}),
        (TypeError, "token must be torch.int64", {"token": torch.zeros(2, dtype=INT32)}),
        (ValueError, r"confidence must have shape \[2\]", {"confidence": torch.zeros(3)}),
        (TypeError, "canvas must be torch.int64", {"canvas": torch.zeros(2, 3, dtype=INT32)}),
        (ValueError, r"masked must have shape \[2, 3\]", {"masked": torch.ones(3, 2, dtype=torch.bool)}),
        (ValueError, "commit_logp is written from logp", {"commit_logp": torch.zeros(2, 3)}),
        (TypeError, "commit_step must be torch.int16", {"commit_step": torch.zeros(2, 3)}),
        (ValueError, r"step must be an int or int32 \[1\] or \[2\]", {"step": torch.zeros(3, dtype=INT32)}),
    ),
)
def test_select_commit_refuses(backend: str, error: type[Exception], message: str, changes: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "canvas": torch.full((2, 3), 9),
        "masked": torch.ones(2, 3, dtype=torch.bool),
        "rows": torch.tensor([0, 4], dtype=INT32),
        "token": torch.tensor([1, 2]),
        "confidence": torch.zeros(2),
        "quota": torch.ones(2, dtype=INT32),
        **changes,
    }
    refuses(error, message, ops.select_commit_, **arguments)
    if "canvas" not in changes:
        assert (arguments["canvas"] == 9).all()  # nothing half-written


@pytest.mark.ops("remask_")
def test_remask_refuses(backend: str) -> None:
    canvas, masked = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.bool)
    running, count = torch.zeros(2, 3), torch.ones(2, dtype=INT32)
    refuses(ValueError, "mask_id=-1", ops.remask_, canvas, masked, running, masked, count, mask_id=-1)
    refuses(
        ValueError, r"count must have shape \[2\]", ops.remask_, canvas, masked, running, masked, count[:1], mask_id=1
    )
    refuses(TypeError, "running must be torch.float32", ops.remask_, canvas, masked, masked, masked, count, mask_id=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("seeds", 1.5), ("step", 1.5), ("top_k", 1.5), ("vocab_limit", 2.5), ("temperature", "warm"), ("seeds", True)],
)
def test_numbers_of_the_wrong_kind_are_named(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{name}={value!r} must be"):
        ops.score_rows(torch.randn(2, 5), **{"temperature": 0.5, "seeds": 1, name: value})  # type: ignore[arg-type]


def test_forbidden_ids_must_be_integers() -> None:
    with pytest.raises(TypeError, match=r"forbidden_ids=1\.5 must be an integer"):
        ops.score_rows(torch.randn(2, 5), forbidden_ids=[0, 1.5])  # type: ignore[list-item]
