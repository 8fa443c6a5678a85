"""Trainers' log-probs, and the checks that stand before their timing: right sides pass, broken ones do not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mdlm_fast.bench.baselines import logprobs as baselines
from mdlm_fast.bench.baselines.score import Scored, llada
from mdlm_fast.bench.harness.results import OURS, Record, Side
from mdlm_fast.bench.suites.kernels import arena, gradient_check, linear, logprobs
from mdlm_fast.bench.suites.kernels.cell import KernelCell, Prepared
from mdlm_fast.bench.suites.kernels.grid import Shape
from mdlm_fast.bench.suites.settings import Settings

ROWS, VOCABULARY, WIDTH = 150, 300, 32  # neither a multiple of TRL's 128 rows
SETTINGS = Settings()
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def small_arena(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An arena of 1 MB in place of one larger than the caches."""
    arena.release()
    monkeypatch.setattr(arena, "size", lambda device: 1 << 20)
    monkeypatch.setattr(arena, "PERIOD", 10_007)
    yield
    arena.release()


def problem(*shapes: tuple[int, int], dtype: torch.dtype = torch.float32) -> gradient_check.Problem:
    """Inputs N(0, 1.5^2) of these shapes, the first with ROWS rows."""
    generator = torch.Generator().manual_seed(0)
    inputs = tuple((torch.randn(shape, generator=generator) * 1.5).to(dtype) for shape in shapes)
    targets = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    return gradient_check.Problem(lambda i: inputs, targets, torch.randn(ROWS, generator=generator))


LOGITS = problem((ROWS, VOCABULARY))
HEAD = problem((ROWS, WIDTH), (VOCABULARY, WIDTH))


@pytest.mark.parametrize("given", (LOGITS, HEAD), ids=("logits", "head"))
def test_truth_is_what_autograd_finds(given: gradient_check.Problem) -> None:
    leaves = [tensor.double().requires_grad_() for tensor in given.inputs(0)]
    log_p = (leaves[0] if len(leaves) == 1 else F.linear(*leaves)).log_softmax(-1)
    logp = log_p[torch.arange(ROWS), given.targets]
    logp.backward(given.upstream.double())
    for found, wanted in zip(
        gradient_check.true_gradients(given), (logp.detach(), *(leaf.grad for leaf in leaves)), strict=True
    ):
        torch.testing.assert_close(found, wanted)
    entropy = torch.distributions.Categorical(logits=log_p.detach()).entropy()
    for found, wanted in zip(gradient_check.true_values(given), (logp.detach(), entropy), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", logprobs.ON_LOGITS)
def test_sides_on_logits_agree(variant: str, dtype: torch.dtype) -> None:
    given = problem((ROWS, VOCABULARY), dtype=dtype)
    found = logprobs.prepared_sides(logprobs.ON_LOGITS[variant], given, variant, {}).check()
    assert set(found) == {OURS, "log_softmax + gather", "TRL"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", (logprobs.FORWARD, logprobs.BOTH))
def test_sides_with_head_agree(variant: str, dtype: torch.dtype, small_arena: None) -> None:
    prepared = logprobs.head_cell(Shape(dtype, ROWS, VOCABULARY), WIDTH, variant, SETTINGS).prepare()
    assert set(prepared.check()) == {candidate.name for candidate in prepared.candidates}
    assert prepared.work["operations"] == 2.0 * ROWS * VOCABULARY * WIDTH * (3 if variant == logprobs.BOTH else 1)


def test_recomputed_chunks_keep_no_logits() -> None:
    hidden, weight = (tensor.requires_grad_() for tensor in problem((ROWS, WIDTH), (VOCABULARY, WIDTH)).inputs(0))
    kept: list[torch.Size] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        baselines.chunked_linear_cross_entropy(hidden, weight, HEAD.targets, rows=32)
    assert kept and VOCABULARY not in {shape[-1] for shape in kept if shape}


def wrong_token(logits: Tensor, targets: Tensor) -> Tensor:
    return baselines.log_softmax_gather(logits, targets.roll(1))


def no_softmax_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    chosen = logits.gather(1, targets[:, None])[:, 0]
    return chosen - logits.detach().logsumexp(-1)


def last_chunk_lost(logits: Tensor, targets: Tensor) -> Tensor:
    logp = baselines.log_softmax_gather(logits, targets)
    return torch.cat([logp[:128], logp[128:].detach()])


@pytest.mark.parametrize("name", ("TRL", OURS))
@pytest.mark.parametrize("broken", (wrong_token, no_softmax_gradient, last_chunk_lost))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_broken_side_is_found(broken: logprobs.Function, name: str, dtype: torch.dtype) -> None:
    functions = logprobs.ON_LOGITS[logprobs.BOTH] | {name: broken}
    given = problem((ROWS, VOCABULARY), dtype=dtype)
    with pytest.raises(AssertionError, match=f"{name}: output"):
        logprobs.prepared_sides(functions, given, logprobs.BOTH, {}).check()


def test_ours_may_not_be_much_worse_than_plain_pytorch() -> None:
    functions = dict(logprobs.ON_LOGITS[logprobs.FORWARD])
    functions[OURS] = lambda logits, targets: baselines.log_softmax_gather(logits, targets) + 2e-5
    with pytest.raises(AssertionError, match="ours: output 0"):
        logprobs.prepared_sides(functions, LOGITS, logprobs.FORWARD, {}).check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", (linear.GREEDY, linear.SAMPLED))
def test_scores_with_head_agree(variant: str, dtype: torch.dtype, small_arena: None) -> None:
    prepared: Prepared = linear.head_cell(Shape(dtype, 40, VOCABULARY), WIDTH, variant, SETTINGS).prepare()
    assert set(prepared.check()) == {candidate.name for candidate in prepared.candidates}
    assert set(prepared.peaks) == set(prepared.check())


def second_best(logits: Tensor) -> Scored:
    confidence, token = logits.softmax(-1).topk(2)
    return Scored(token[:, 1], confidence[:, 1])


def too_hot(logits: Tensor) -> Scored:
    return llada(logits / 2)


@pytest.mark.parametrize("broken", (second_best, too_hot))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_broken_decoder_is_found(broken: linear.Decoder, dtype: torch.dtype) -> None:
    hidden, weight = problem((ROWS, WIDTH), (VOCABULARY, WIDTH), dtype=dtype).inputs(0)
    sides = linear.sides(linear.GREEDY, ROWS, "cpu") | {"LLaDA": partial(linear.after_product, broken)}
    with pytest.raises(AssertionError, match="LLaDA: "):
        linear.check(linear.GREEDY, sides, hidden * WIDTH**-0.5, weight)


def test_other_draws_are_found() -> None:
    hidden, weight = HEAD.inputs(0)
    sides = linear.sides(linear.SAMPLED, ROWS, "cpu")
    other = partial(sides[OURS], seeds=torch.tensor([2]))
    with pytest.raises(AssertionError, match="draws differ"):
        linear.check(linear.SAMPLED, sides | {OURS: other}, hidden * WIDTH**-0.5, weight)


def test_noise_of_many_rows_is_extrapolated(small_arena: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(linear.MOST_TEMPORARIES, "cpu", 150 * 100 * 44)
    prepared = linear.head_cell(Shape(torch.float32, 256, 100), WIDTH, linear.SAMPLED, SETTINGS).prepare()
    parts = {candidate.name: (candidate.factor, candidate.extrapolated_from) for candidate in prepared.candidates}
    assert parts["LLaDA"] == (2.0, "128 of 256 rows")
    assert parts[OURS] == (1.0, None)
    assert set(prepared.check()) == set(parts)


def test_returned_gradients_are_left_out_of_peaks() -> None:
    sides = {OURS: Side(peak_bytes=1500), "TRL": Side(peak_bytes=900), "read": Side()}
    cell = KernelCell("kernels", {}, lambda: Record("kernels", {}, sides), lambda: Prepared([], dict, {}))
    record = logprobs.without_gradients(cell, 1000).measure()
    assert [side.peak_bytes for side in record.sides.values()] == [500, 0, None]


@pytest.mark.parametrize("full", (False, True))
def test_no_two_cells_have_the_same_case(full: bool) -> None:
    settings = Settings(full=full)
    cases = [json.dumps(cell.case) for module in (linear, logprobs) for cell in module.cells(settings)]
    assert len(set(cases)) == len(cases)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_form_for_the_compiler_agrees(dtype: torch.dtype) -> None:
    given = problem((ROWS, VOCABULARY), dtype=dtype)
    functions = logprobs.ON_LOGITS[logprobs.BOTH] | {"arranged": baselines.cross_entropy}
    assert "arranged" in logprobs.prepared_sides(functions, given, logprobs.BOTH, {}).check()


def test_ours_is_held_to_float32_whatever_the_dtype_of_the_logits() -> None:
    functions = dict(logprobs.ON_LOGITS[logprobs.FORWARD])
    functions[OURS] = lambda logits, targets: baselines.log_softmax_gather(logits.float(), targets) + 2e-5
    given = problem((ROWS, VOCABULARY), dtype=torch.bfloat16)
    with pytest.raises(AssertionError, match="ours: output 0"):
        logprobs.prepared_sides(functions, given, logprobs.FORWARD, {}).check()


def test_one_row_draws_are_compared_on_more(small_arena: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = linear.sides

    def other_seed(*args: object) -> dict[str, linear.Side]:
        found = right(*args)  # type: ignore[arg-type]
        return found | {OURS: partial(found[OURS], seeds=torch.tensor([2]))}

    prepare = linear.head_cell(Shape(torch.float32, 1, VOCABULARY), WIDTH, linear.SAMPLED, SETTINGS).prepare
    prepare().check()
    monkeypatch.setattr(linear, "sides", other_seed)
    with pytest.raises(AssertionError, match="of 32 draws differ"):
        prepare().check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sides_of_the_centre_agree_with_head(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "compiled", lambda function: function)
    hidden, weight = problem((ROWS, WIDTH), (VOCABULARY, WIDTH), dtype=dtype).inputs(0)
    sides = linear.sides(linear.GREEDY, ROWS, "cpu", every=True)
    found = linear.check(linear.GREEDY, sides, hidden * WIDTH**-0.5, weight)
    assert {"Fast-dLLM", "torch.compile, arranged"} < set(found) == set(sides)
