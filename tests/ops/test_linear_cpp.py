"""The fused LM head: equal to the logits it never stores, on whole numbers, whose sums are exact in any order."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import within_twice_torch

from mdlm_fast import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.7, "seeds": 3},
    "filtered": {"temperature": 0.9, "seeds": 5, "top_k": 10, "top_p": 0.9},
    "guided": {"temperature": 0.8, "seeds": 1, "guidance_scale": 0.5},
    "tempered": {
        "temperature": 1.3,
        "top_p": 0.8,
        "stats_from": "tempered",
        "forbidden_ids": [1, 5],
        "vocab_limit": 90,
    },
}


@pytest.fixture(autouse=True)
def compiled() -> Iterator[None]:
    with ops.use_backend("cpp"):
        yield


def whole_numbers(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Mostly zeros, so that logits stay below 256 and are exact even in bfloat16."""
    values = torch.randint(-3, 4, shape, generator=generator)
    return values * (torch.rand(shape, generator=generator) < 0.4)


def has_own_gemm(dtype: torch.dtype) -> bool:
    isa = torch.ops.mdlm_fast_cpp.cpu_isa()
    return isa == "amx" or (isa == "avx512" and (dtype == torch.float32 or torch.cpu._is_avx512_bf16_supported()))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("count", "depth", "width"), ((1, 1, 90), (3, 33, 2049), (64, 8, 4096), (65, 31, 5001), (150, 64, 2000))
)
def test_equals_scoring_the_logits(mode: str, dtype: torch.dtype, count: int, depth: int, width: int) -> None:
    generator = torch.Generator().manual_seed(count)
    hidden = whole_numbers(generator, 2, 100, depth).to(dtype)
    weight, bias = whole_numbers(generator, width, depth).to(dtype), whole_numbers(generator, width).to(dtype)
    rows = torch.randperm(200, generator=generator)[:count].to(torch.int32)
    rows[count // 2] = -1 if count > 1 else rows[0]
    arguments, linear_arguments = dict(MODES[mode]), dict(MODES[mode])
    if "guidance_scale" in arguments:
        guidance = whole_numbers(generator, 2, 100, depth).to(dtype)
        linear_arguments["guidance_hidden"] = guidance
        arguments["guidance_logits"] = F.linear(guidance, weight, bias)
    ours = ops.linear_score_rows(hidden, weight, bias, rows, **linear_arguments)
    expected = ops.score_rows(F.linear(hidden, weight, bias), rows, **arguments)
    for name, a, b in zip(ours._fields, ours, expected, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_strides_of_hidden_and_weight(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    hidden = whole_numbers(generator, 4, 30, 50).to(dtype)[1:, ::3, 4:44]
    wide = whole_numbers(generator, 3000, 60).to(dtype)
    expected = ops.score_rows(F.linear(hidden, wide[:, 10:50]), temperature=1.0, seeds=2)
    for weight in (wide[:, 10:50], wide[:, 10:50].t().contiguous().t()):
        ours = ops.linear_score_rows(hidden, weight, temperature=1.0, seeds=2)
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("depth", (5, 70, 100))
def test_a_row_has_the_same_bits_whatever_is_computed_beside_it(dtype: torch.dtype, depth: int) -> None:
    if not has_own_gemm(dtype):
        pytest.skip("the library's GEMM does not promise it")
    generator = torch.Generator().manual_seed(depth)
    hidden = torch.randn(300, depth, generator=generator).to(dtype)
    weight = torch.randn(2300, depth, generator=generator).to(dtype)
    whole = ops.linear_score_rows(hidden, weight, temperature=0.8, seeds=9)
    for rows in ([0], [17], [299], list(range(40, 55)), list(range(5, 38)), list(range(250, 300))):
        index = torch.tensor(rows, dtype=torch.int32)
        part = ops.linear_score_rows(hidden, weight, rows=index, temperature=0.8, seeds=9)
        assert all(torch.equal(a, b[rows]) for a, b in zip(part, whole, strict=True)), rows


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("count", (1, 20, 50))
def test_nothing_beyond_the_weight_is_used(dtype: torch.dtype, count: int) -> None:
    """The weight lies among NaN: a kernel that multiplied them by the zeros of its padding would return NaN."""
    generator = torch.Generator().manual_seed(count)
    around = torch.full((2200, 60), torch.nan).to(dtype)
    weight = around[20:2120, 7:52]
    weight.copy_(whole_numbers(generator, *weight.shape).to(dtype))
    weight.requires_grad_()
    hidden = whole_numbers(generator, count, 45).to(dtype).requires_grad_()
    targets = torch.randint(2100, (count,), generator=generator)
    expected = ops.score_rows(F.linear(hidden, weight).detach())
    scores = ops.linear_score_rows(hidden.detach(), weight.detach())
    assert all(torch.equal(a, b) for a, b in zip(scores, expected, strict=True))
    logp, _ = ops.linear_token_logprobs(hidden, weight, None, None, targets)
    gradients = torch.autograd.grad(logp.sum(), (hidden, weight))
    assert all(bool(torch.isfinite(x).all()) for x in (logp, *gradients))


def at_the_end_of_memory(tensor: torch.Tensor) -> torch.Tensor:
    """A copy whose last element is followed by a page that may not be read."""
    size = tensor.numel() * tensor.element_size()
    end = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, end + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + end), mmap.PAGESIZE, 0) == 0
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=end - size)
    return copy.view_as(tensor).copy_(tensor)


@pytest.mark.skipif(sys.platform != "linux", reason="protects a page of memory")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_nothing_beyond_the_inputs_is_read(dtype: torch.dtype) -> None:
    """Loads of tile registers are invisible to the address sanitizer."""
    generator = torch.Generator().manual_seed(8)
    for count, depth, width in itertools.product((1, 17, 33), (5, 32, 45), (7, 70, 2049)):
        shapes = ((count, depth), (width, depth), (width,))
        inputs = [at_the_end_of_memory(whole_numbers(generator, *shape).to(dtype)) for shape in shapes]
        expected = ops.score_rows(F.linear(*inputs))
        assert all(torch.equal(a, b) for a, b in zip(ops.linear_score_rows(*inputs), expected, strict=True))
        hidden, weight, bias = (x.requires_grad_() for x in inputs)
        logp, _ = ops.linear_token_logprobs(hidden, weight, bias, None, torch.zeros(count, dtype=torch.int64))
        torch.autograd.grad(logp.sum(), (hidden, weight, bias))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_no_rows_and_only_padding(dtype: torch.dtype) -> None:
    hidden, weight = torch.ones(3, 4, dtype=dtype), torch.ones(10, 4, dtype=dtype)
    assert ops.linear_score_rows(hidden, weight, rows=torch.empty(0, dtype=torch.int32)).token.shape == (0,)
    scores = ops.linear_score_rows(hidden, weight, rows=torch.full((2,), -1, dtype=torch.int32))
    assert scores.token.tolist() == [-1, -1]


def test_nan_in_hidden_names_the_row() -> None:
    hidden, weight = torch.ones(3, 4, dtype=torch.bfloat16), torch.ones(10, 4, dtype=torch.bfloat16)
    hidden[1, 2] = torch.nan
    with pytest.raises(ValueError, match="row of logits 1"):
        ops.linear_score_rows(hidden, weight)
    with pytest.raises(ValueError, match="row of logits 1"):
        ops.linear_token_logprobs(hidden, weight, None, None, torch.zeros(3, dtype=torch.int64))


def test_deterministic_and_the_same_on_any_number_of_threads() -> None:
    if not has_own_gemm(torch.bfloat16):
        pytest.skip("the library's GEMM does not promise it")
    generator = torch.Generator().manual_seed(6)
    hidden = torch.randn(300, 70, generator=generator).bfloat16()
    weight = torch.randn(5000, 70, generator=generator).bfloat16()
    targets = torch.arange(300)

    def run() -> list[torch.Tensor]:
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logp, entropy = ops.linear_token_logprobs(h, w, None, None, targets)
        logp.sum().backward()
        scores = ops.linear_score_rows(hidden, weight, temperature=0.7, seeds=4)
        assert h.grad is not None and w.grad is not None
        return [logp.detach(), entropy, h.grad, w.grad, *scores]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = run()
        torch.set_num_threads(3)
        for again in (run(), run()):
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(before)


# N above what is computed together (64), above one task (256, 512) and one panel of dW (1024), and, with 2048 x 2100
# logits a chunk, several chunks of the vocabulary.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("count", "depth", "width"), ((1, 16, 3000), (65, 33, 2049), (700, 40, 2100), (2100, 9, 6001)))
def test_gradients_against_float64(dtype: torch.dtype, count: int, depth: int, width: int) -> None:
    generator = torch.Generator().manual_seed(count)
    inputs = [
        torch.randn(count, depth, generator=generator).to(dtype),
        (torch.randn(width, depth, generator=generator) * 0.3).to(dtype),
        torch.randn(width, generator=generator).to(dtype),
    ]
    targets = torch.randint(width, (count,), generator=generator)
    upstream = torch.randn(count, generator=generator)

    def dense(at: torch.dtype) -> list[torch.Tensor]:
        leaves = [x.to(at).requires_grad_() for x in inputs]
        logp = F.linear(*leaves).log_softmax(-1).gather(1, targets[:, None])[:, 0]
        return list(torch.autograd.grad((logp * upstream.to(at)).sum(), leaves))

    leaves = [x.clone().requires_grad_() for x in inputs]
    hidden, weight, bias = leaves
    logp, _ = ops.linear_token_logprobs(hidden, weight, bias, None, targets)
    ours = torch.autograd.grad((logp * upstream).sum(), leaves)
    for grad, exact, eager in zip(ours, dense(torch.float64), dense(dtype), strict=True):
        error, allowed = within_twice_torch(grad, exact.numpy(), eager)
        assert error <= allowed


def test_gradient_of_hidden_is_accumulated_in_fp32() -> None:
    """A product rounded to bf16 chunk by chunk would lose contributions far below the running sum."""
    width, depth = 30000, 4
    hidden = torch.zeros(1, depth, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.ones(width, depth, dtype=torch.bfloat16)
    weight[0] = -500.0
    logp, _ = ops.linear_token_logprobs(hidden, weight, None, None, torch.zeros(1, dtype=torch.int64))
    logp.sum().backward()
    assert hidden.grad is not None
    # dz = 1 - 1/V at 0, -1/V elsewhere, rounded to bf16 as any gradient of bf16 logits.
    p = torch.tensor(1 / width).bfloat16().double()
    exact = -500.0 * float(torch.tensor(1 - 1 / width).bfloat16()) - float(p) * (width - 1)
    assert abs(float(hidden.grad[0, 0]) - exact) <= 2.0  # half a unit in the last place of bf16 at 500
