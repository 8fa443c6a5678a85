"""The matrix itself: it sees small mistakes, and an op that raises is reported without ending the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from parity.matrix import Summary, run_matrix
from parity.measure import Measurement, Target

from mdlm_fast.ops import _registry
from mdlm_fast.ops._registry import Backend, register_backend
from mdlm_fast.ops.reference import reference_backend


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Summary]]]:
    """Runs the short list on the reference with one op replaced; of the cases those alone that use the op, unless
    `everything`."""
    monkeypatch.setattr(_registry, "_backends", dict(_registry._backends))

    def run(op: str, change: Callable[..., Any], *, everything: bool = False) -> list[Summary]:
        implementations = dict(reference_backend().ops)
        right = implementations[op]
        implementations[op] = lambda *arguments: change(right, *arguments)
        register_backend(Backend("broken", ops=implementations))
        summaries, _ = run_matrix(
            [Target("broken", "cpu")],
            reduced=True,
            choose=lambda case: everything or op in case.needs,
            report=lambda line: None,
        )
        return summaries

    yield run
    _registry._cache.clear()


def failing(summaries: list[Summary]) -> set[str]:
    return {summary.op for summary in summaries if summary.failures}


def test_small_errors_of_statistics_are_seen(broken: Callable[..., list[Summary]]) -> None:
    def off(right: Callable[..., Any], *arguments: Any) -> Any:
        token, logp, logp_t, margin, entropy = right(*arguments)
        return token, logp, logp_t, margin, entropy * (1 + 3e-6)

    assert failing(broken("score_rows", off)) == {"score_rows", "finish_scores"}


def test_a_biased_draw_is_seen(broken: Callable[..., list[Summary]]) -> None:
    def next_seed(right: Callable[..., Any], *arguments: Any) -> Any:
        return right(*arguments[:5], arguments[5] + 1, *arguments[6:])

    assert "score_rows" in failing(broken("score_rows", next_seed))


def test_a_wrong_gradient_is_seen(broken: Callable[..., list[Summary]]) -> None:
    def off(right: Callable[..., Any], *arguments: Any) -> Any:
        return right(*arguments) * 1.02

    assert failing(broken("token_logprobs_backward", off)) == {"token_logprobs"}


def test_one_wrong_commit_is_seen(broken: Callable[..., list[Summary]]) -> None:
    def late(right: Callable[..., Any], *arguments: Any) -> Any:
        right(*arguments)
        arguments[15][:] = torch.where(arguments[15] >= 0, arguments[15] + 1, -1)  # commit_step

    assert failing(broken("select_commit_", late)) == {"select_commit_"}


def test_an_op_that_raises_fails_its_cases_alone(broken: Callable[..., list[Summary]]) -> None:
    def refuse(right: Callable[..., Any], *arguments: Any) -> Any:
        raise RuntimeError("no such kernel\nwith details")

    summaries = broken("linear_score_rows", refuse, everything=True)
    assert failing(summaries) == {"linear_score_rows"}
    assert all("RuntimeError: no such kernel" in f for s in summaries for f in s.failures)


def test_errors_and_nothing_allowed() -> None:
    assert Measurement("x", 0.0).passed and Measurement("x", 0.0).ratio == 0.0
    assert not Measurement("x", 1.0).passed and Measurement("x", 1.0).ratio == float("inf")
    assert not Measurement("x", float("nan"), 1.0).passed and Measurement("x", float("nan"), 1.0).ratio == float("inf")
