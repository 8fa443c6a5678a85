"""The ops as torch.library ops: opcheck, torch.compile, autocast, fake tensors, equal schemas in every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.library import opcheck

from mdlm_fast import ops
from mdlm_fast.ops._library import CPP_NAMESPACE
from mdlm_fast.ops._schemas import SCHEMAS

ROWS = torch.tensor([3, 0, -1, 5], dtype=torch.int32)
SEQUENCE = torch.tensor([1, 0, 0, 1], dtype=torch.int32)
POSITION = torch.tensor([0, 1, 2, 3], dtype=torch.int32)
FORBIDDEN = torch.tensor([1, 4])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def row_arguments() -> tuple[Any, ...]:
    step = torch.tensor([2], dtype=torch.int32)
    return ROWS, SEQUENCE, POSITION, torch.tensor([0.0, 0.8]), torch.tensor([7, -8]), step


def op_arguments(op: str) -> list[tuple[Any, ...]]:
    """Samples of each op's schema arguments, plain and with every optional argument."""
    logits, other = torch.randn(2, 3, 40, generator=generator(1)), torch.randn(2, 3, 40, generator=generator(2))
    hidden, weight = torch.randn(6, 5, generator=generator(3)), torch.randn(40, 5, generator=generator(4))
    bias = torch.randn(40, generator=generator(5))
    targets, one = torch.tensor([0, 2, 39, 7]), torch.tensor([0.9])
    plain = (None, None, None, 0.0, 40, 0, 1.0, True, False, False, 31)
    full = (FORBIDDEN, other, ROWS, 1.5, 38, 9, 0.9, True, True, True, 23)
    if op == "score_rows":
        return [(logits, *row_arguments(), *plain), (logits, *row_arguments(), *full)]
    if op == "linear_score_rows":
        g = (FORBIDDEN, hidden.flip(0), ROWS, 1.5, 38, 9, 0.9, True, True, True, 23)
        return [(hidden, weight, None, *row_arguments(), *plain), (hidden, weight, bias, *row_arguments(), *g)]
    if op == "score_partials":
        # No padding here: its ids are -1, a NaN as float32 bits, and opcheck compares NaN as different.
        rows = (logits, ROWS.abs(), SEQUENCE, torch.tensor([0.0, 0.8]))
        guided = (*rows, FORBIDDEN, other, ROWS.abs(), 1.5, 0, 38, True, True, 23)
        return [(*rows, None, None, None, 0.0, 0, 40, False, False, 31), guided]
    if op == "finish_scores":
        samples = []
        for tail in (plain, full):
            head = (logits, ROWS, SEQUENCE, torch.tensor([0.0, 0.8]), *tail[:4], 0, tail[4], *tail[8:])
            partials = torch.ops.mdlm_fast.score_partials(*head)
            samples.append((partials, logits, None, None, None, *row_arguments(), *tail))
        return samples
    if op in ("token_logprobs", "linear_token_logprobs"):
        head = (logits,) if op == "token_logprobs" else (hidden, weight, bias)
        head = tuple(x.clone().requires_grad_() for x in head)
        return [(*head, ROWS, targets, one, None, 40, False), (*head, ROWS, targets, one, FORBIDDEN, 40, True)]
    if op in ("token_logprobs_backward", "linear_token_logprobs_backward"):
        linear = op.startswith("linear")
        head = (hidden, weight, bias) if linear else (logits,)
        tail = (ROWS, targets, one, FORBIDDEN, 40)
        _, entropy, lse = getattr(torch.ops.mdlm_fast, op.removesuffix("_backward"))(*head, *tail, True)
        grad = torch.randn(4, generator=generator(6))
        needs = [(True, True, True), (False, True, False)] if linear else [()]
        return [(grad, g, *head, *tail, entropy, lse, *need) for g in (None, grad.flip(0)) for need in needs]
    canvas, masked = torch.full((2, 3), 9), torch.tensor([[True, False, False], [True, True, True]])
    running, scope = torch.randn(2, 3, generator=generator(7)), torch.ones(2, 3, dtype=torch.bool)
    counts = torch.tensor([1, 2], dtype=torch.int32)
    record = torch.zeros(2, 3, dtype=torch.int16)
    left, done = torch.zeros(2, dtype=torch.int32), torch.zeros(2, dtype=torch.bool)
    if op == "remask_":
        return [
            (canvas.clone(), masked.clone(), running, scope, counts, 9, None, None, None),
            (canvas, masked, running, scope, counts, 9, record, left, done),
        ]
    assert op == "select_commit_"
    step, slots = torch.tensor([4], dtype=torch.int32), torch.randn(4, generator=generator(8))
    fixed = (ROWS, targets, slots)
    bare = (None, None, None, counts, *(None,) * 5, step, *(None,) * 8, "quota", "none", 0.0)
    floats = [torch.zeros(2, 3) for _ in range(3)]
    threshold, gamma, seeds = torch.tensor([0.1, 0.2]), torch.tensor([0.5, 0.4]), torch.tensor([1, 2])
    lists = (torch.zeros(4, dtype=torch.int32), torch.zeros(1, dtype=torch.int32))
    per_row, per_sequence = (slots, slots, slots), (counts, threshold, gamma, FORBIDDEN, POSITION, seeds, step)
    return [
        (canvas.clone(), masked.clone(), *fixed, *bare),
        (canvas, masked, *fixed, *per_row, *per_sequence, record, *floats, left, done, *lists, *("factor", "log", 0.7)),
    ]


@pytest.mark.parametrize("op", sorted(SCHEMAS))
@pytest.mark.parametrize("backend_name", ("reference", "cpp"))
def test_opcheck(op: str, backend_name: str) -> None:
    if backend_name not in ops.available_backends(op):
        return
    with ops.use_backend(backend_name):
        for arguments in op_arguments(op):
            opcheck(getattr(torch.ops.mdlm_fast, op).default, arguments)


@pytest.mark.parametrize("op", sorted(SCHEMAS))
def test_the_compiled_library_has_the_same_schema(op: str) -> None:
    if "cpp" not in ops.available_backends(op):
        return
    ours = str(getattr(torch.ops.mdlm_fast, op).default._schema)
    theirs = str(getattr(getattr(torch.ops, CPP_NAMESPACE), op).default._schema)
    assert theirs == ours.replace("mdlm_fast::", f"{CPP_NAMESPACE}::")


@pytest.mark.ops("score_rows", "select_commit_")
def test_trap_l5_a_compiled_step_writes_once_and_has_no_graph_breaks(backend: str) -> None:
    """Score, then commit in place, in one graph; a new batch size does not change the results."""

    def step(logits: torch.Tensor, canvas: torch.Tensor, masked: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(logits.shape[0] * logits.shape[1], dtype=torch.int32)
        scores = ops.score_rows(logits, rows, temperature=0.7, seeds=torch.arange(logits.shape[0]), top_k=5)
        assert scores.logp is not None
        ops.select_commit_(canvas, masked, rows, scores.token, scores.logp, quota=quota, rule="quota")
        return scores.logp

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for sequences in (2, 3):
        logits = torch.randn(sequences, 4, 30, generator=generator(sequences))
        quota = torch.full((sequences,), 2, dtype=torch.int32)
        states = []
        for run in (step, compiled):
            canvas, masked = torch.full((sequences, 4), 99), torch.ones(sequences, 4, dtype=torch.bool)
            logp = run(logits, canvas, masked, quota)
            states.append((canvas, masked, logp))
        for eager, graph in zip(*states, strict=True):
            assert torch.equal(eager, graph)
        assert int(states[0][1].sum()) == 2 * sequences


@pytest.mark.ops("linear_token_logprobs", "linear_token_logprobs_backward", "linear_score_rows")
def test_gradients_under_compile(backend: str) -> None:
    weight = torch.randn(30, 6, generator=generator(1))
    targets = torch.arange(8)

    def loss(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        logp, entropy = ops.linear_token_logprobs(hidden, weight, None, None, targets, 0.9, [29], entropy_grad=True)
        confidence = ops.linear_score_rows(hidden, weight).margin
        assert confidence is not None
        return (logp * confidence).sum() + entropy.mean()

    results = []
    for run in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [torch.randn(8, 6, generator=generator(2)).requires_grad_(), weight.clone().requires_grad_()]
        value = run(*leaves)
        results.append([value, *torch.autograd.grad(value, leaves)])
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(eager, graph)


@pytest.mark.ops(
    "score_rows", "linear_score_rows", "token_logprobs", "linear_token_logprobs", "linear_token_logprobs_backward"
)
def test_trap_n9_autocast_changes_nothing(backend: str) -> None:
    hidden = torch.randn(6, 16, generator=generator(3))
    weight = torch.randn(300, 16, generator=generator(4), requires_grad=True)
    targets = torch.arange(6)

    def everything() -> list[torch.Tensor]:
        logits = torch.nn.functional.linear(hidden.double(), weight.detach().double()).float()
        outputs = [*ops.score_rows(logits, temperature=0.5, seeds=1), *ops.linear_score_rows(hidden, weight)]
        outputs += ops.token_logprobs(logits, None, targets)
        logp, entropy = ops.linear_token_logprobs(hidden, weight, None, None, targets)
        return [*outputs, logp, entropy, *torch.autograd.grad(logp.sum(), weight)]

    outside = everything()
    with torch.autocast("cpu", torch.bfloat16):
        inside = everything()
    for a, b in zip(outside, inside, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_fake_tensors_have_the_real_shapes() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        scores = ops.score_rows(torch.empty(4, 8, 100), stats=("logp",), temperature=0.5)
        assert scores.token.shape == (32,) and scores.token.dtype == torch.int64
        assert scores.logp is not None and scores.logp.dtype == torch.float32 and scores.entropy is None
        assert ops.score_partials(torch.empty(3, 5000)).shape == (3, 3, 8)


@pytest.mark.ops("select_commit_", "remask_")
def test_in_place_ops_bump_the_version(backend: str) -> None:
    """Autograd must see that a saved canvas has changed."""
    canvas, masked = torch.full((1, 3), 9), torch.ones(1, 3, dtype=torch.bool)
    before = canvas._version
    rows, quota = torch.arange(3, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    ops.select_commit_(canvas, masked, rows, torch.arange(3), torch.zeros(3), quota=quota)
    assert canvas._version > before
    with torch.inference_mode():
        inside = torch.full((1, 3), 9)
        ops.select_commit_(inside, torch.ones_like(masked), rows, torch.arange(3), torch.zeros(3), quota=quota)
        assert inside.tolist() == [[0, 9, 9]]


@pytest.mark.ops("score_rows")
def test_scores_are_constants_for_autograd(backend: str) -> None:
    logits = torch.randn(3, 9, requires_grad=True)
    assert all(not x.requires_grad for x in ops.score_rows(logits))
