"""What only the compiled token_logprobs promises: the same bits for any threads, batch and instruction set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mdlm_fast import ops

PROGRAM = Path(__file__).with_name("isa_program.py")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def compiled() -> Iterator[None]:
    with ops.use_backend("cpp"):
        yield


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def evaluate(
    logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor, temperature: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits = logits.detach().requires_grad_()
    logp, entropy = ops.token_logprobs(logits, rows, targets, temperature, [3, 40], entropy_grad=True)
    (logp.sum() - 2 * entropy.sum()).backward()
    assert logits.grad is not None
    return logp.detach(), entropy.detach(), logits.grad


def test_every_instruction_set_gives_the_same_bits() -> None:
    results = {}
    for isa in ("portable", "avx2", "avx512", "amx"):
        run = subprocess.run(
            [sys.executable, str(PROGRAM)],
            env={**os.environ, "MDLM_FAST_CPU_ISA": isa},
            capture_output=True,
            text=True,
        )
        if run.returncode == 0:
            results[isa] = json.loads(run.stdout)
        else:
            assert isa != "portable" and "this processor lacks it" in run.stderr, run.stderr
    assert "portable" in results
    for isa, result in results.items():
        assert result == results["portable"], isa


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", (41, 63, 64, 2048, 2049, 40000))
def test_threads_and_batch_do_not_change_a_bit(threads: None, width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(width)
    logits = (torch.randn(2, 6, width, generator=generator) * 5).to(dtype)
    rows = torch.tensor([11, 0, 7, 4], dtype=torch.int32)
    targets = torch.zeros(4, dtype=torch.int64)
    temperature = torch.tensor([0.5, 1.0, 1.7, 3.0])
    torch.set_num_threads(1)
    whole = evaluate(logits, rows, targets, temperature)
    torch.set_num_threads(3)
    for ours, expected in zip(evaluate(logits, rows, targets, temperature), whole, strict=True):
        assert torch.equal(ours, expected)
    flat = logits.flatten(0, 1)
    for i in range(4):
        alone = evaluate(flat[rows[i]][None], torch.zeros(1, dtype=torch.int32), targets[:1], temperature[i : i + 1])
        assert torch.equal(alone[0][0], whole[0][i]) and torch.equal(alone[1][0], whole[1][i])
        assert torch.equal(alone[2][0], whole[2].flatten(0, 1)[rows[i]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_rows_are_read_in_place(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    wide = torch.randn(4, 5, 3000, generator=generator).to(dtype)
    view = wide[1:, ::2, 7:2800]
    rows, targets = torch.tensor([8, 0, 4], dtype=torch.int32), torch.tensor([5, 6, 2790])
    temperature = torch.ones(1)
    for ours, expected in zip(
        evaluate(view, rows, targets, temperature), evaluate(view.clone(), rows, targets, temperature), strict=True
    ):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_a_repeated_row_are_added_before_rounding(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(3, 500, generator=generator).to(dtype)
    targets = torch.tensor([5, 90, 5, 7])
    rows = torch.tensor([1, 1, 1, 2], dtype=torch.int32)
    ours = evaluate(logits, rows, targets, torch.ones(1))[2]
    parts = [evaluate(logits.float(), rows[i : i + 1], targets[i : i + 1], torch.ones(1))[2] for i in range(4)]
    torch.testing.assert_close(ours, torch.stack(parts).sum(0).to(dtype), rtol=0, atol=1e-6)
    assert not ours[0].any()
