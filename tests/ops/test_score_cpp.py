"""What is particular to the compiled scoring kernels: instruction sets, threads, batch splits, addresses."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from mdlm_fast.ops import available_backends, finish_scores, score_partials, score_rows, use_backend

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ISAS = ["portable", "avx2", "avx512", "amx"]
WIDTH = 3 * 2048 + 717  # whole tiles, and a last one that is no whole number of 64-column blocks


@pytest.fixture(autouse=True)
def compiled_backend():
    with use_backend("cpp"):
        yield


def random_logits(rows: int, width: int, dtype: torch.dtype, seed: int, spread: float = 6.0) -> Tensor:
    """Rows of different sharpness, with ties and -inf."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator) * spread * torch.linspace(0.2, 2, rows)[:, None]
    x[::3] = (x[::3] * 2).round() / 2
    x[1::3, ::7] = float("-inf")
    return x.to(dtype)


def every_way(x: Tensor) -> list[Tensor]:
    """Results of all kinds of calls on one matrix of logits, as a list of tensors."""
    n, width = x.shape
    position = torch.arange(n, dtype=torch.int32)
    results: list[Tensor] = []
    calls: list[dict[str, Any]] = [
        {},
        {"stats": ("token",)},
        {"temperature": 0.7, "seeds": 3},
        {"temperature": 1.0, "seeds": 4, "stats_from": "tempered"},
        {"temperature": 1.9, "seeds": 5, "stats_from": "tempered", "normalize_over": "all"},
        {"temperature": 0.9, "seeds": 6, "top_p": 0.8, "stats_from": "tempered"},
        {"temperature": 0.9, "seeds": 6, "top_k": 40},
        {"guidance_logits": x.flip(0).clamp(min=-30), "guidance_scale": 0.5},
    ]
    for call in calls:
        options: dict[str, Any] = {"row_position": position, "forbidden_ids": [width - 1, 5], "vocab_limit": width - 3}
        scores = score_rows(x, **options, **call)
        results += [value for value in scores if value is not None]
    results.append(score_partials(x, temperature=0.6))
    return results


def digest(tensors: list[Tensor]) -> str:
    """A hash of the bits."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def digests() -> str:
    """One hash per dtype; what the subprocesses of the instruction set test print."""
    return " ".join(digest(every_way(random_logits(9, WIDTH, dtype, seed=1))) for dtype in DTYPES)


def run_with_isa(isa: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MDLM_FAST_CPU_ISA": isa, "OMP_NUM_THREADS": "1"}
    code = f"import runpy, mdlm_fast; mdlm_fast.use_backend('cpp');print(runpy.run_path({__file__!r})['digests']())"
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_instruction_sets_agree_bit_for_bit():
    expected = digests()
    ran = []
    for isa in ISAS:
        result = run_with_isa(isa)
        if result.returncode != 0 and "this processor lacks it" in result.stderr:
            continue
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip() == expected, isa
        ran.append(isa)
    assert "portable" in ran


def test_unknown_instruction_set_is_refused():
    result = run_with_isa("mmx")
    assert result.returncode != 0
    assert "MDLM_FAST_CPU_ISA=mmx is not one of portable, avx2, avx512, amx" in result.stderr


@pytest.mark.parametrize("dtype", DTYPES)
def test_thread_count_changes_no_bit(dtype):
    few, many = random_logits(2, WIDTH, dtype, seed=2), random_logits(40, WIDTH, dtype, seed=3)
    threads = torch.get_num_threads()
    try:
        seen = set()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            seen.add((digest(every_way(few)), digest(every_way(many))))
    finally:
        torch.set_num_threads(threads)
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [None, 0.7])
def test_batch_split_and_row_order_change_no_bit(dtype, temperature):
    x = random_logits(33, WIDTH, dtype, seed=4)
    position = torch.arange(33, dtype=torch.int32)
    whole = score_rows(x, row_position=position, temperature=temperature, seeds=7)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(5)).int()
    for rows in (*order.split(5), order[:1]):
        part = score_rows(x, rows, row_position=position[rows.long()], temperature=temperature, seeds=7)
        for got, expected in zip(part, whole, strict=True):
            assert torch.equal(got, expected[rows.long()])


@pytest.mark.parametrize("dtype", DTYPES)
def test_address_and_stride_change_no_bit(dtype):
    x = random_logits(6, 2048 + 65, dtype, seed=6)
    expected = digest(every_way(x))
    for offset, stride in ((1, 2300), (3, 2117), (17, 4096)):
        storage = torch.full((6 * stride + 64,), float("nan"), dtype=dtype)  # what a stray read would find
        view = storage.as_strided(x.shape, (stride, 1), offset)
        view.copy_(x)
        assert digest(every_way(view)) == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 63, 64, 65, 127, 2047, 2048, 2049, 4096 + 64])
def test_ragged_widths_match_the_reference(dtype, width):
    x = random_logits(12, width, dtype, seed=width)
    x[:, 0] = 0.25  # no row without a candidate
    ours = score_rows(x)
    with use_backend("reference"):
        expected = score_rows(x)
    assert torch.equal(ours.token, expected.token)
    for got, wanted in zip(ours[1:], expected[1:], strict=True):
        torch.testing.assert_close(got, wanted, rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_offsets_beyond_32_bits(dtype):
    # Rows 2^31 elements and more into the tensor, of which only the pages that are touched exist.
    width, rows = 4096, 530_000
    assert rows * width > 2**31
    x = torch.empty((rows, width), dtype=dtype)  # virtual memory: untouched pages take none
    x[3] = random_logits(1, width, dtype, seed=8)[0]
    x[rows - 1] = random_logits(1, width, dtype, seed=9)[0]
    picked = torch.tensor([rows - 1, 3], dtype=torch.int32)
    copied = x[picked.long()].clone()
    keyed = {"row_position": torch.tensor([0, 1], dtype=torch.int32), "temperature": 0.8, "seeds": 1}
    for got, expected in zip(score_rows(x, picked, **keyed), score_rows(copied, **keyed), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_expanded_rows_beyond_32_bits(dtype):
    x = random_logits(1, 2048, dtype, seed=10).expand(1_100_000, 2048)
    assert x.shape.numel() > 2**31
    rows = torch.tensor([0, 1_099_999], dtype=torch.int32)
    token, *_ = score_rows(x, rows)
    assert token[0] == token[1] == x[0].argmax()


@pytest.mark.parametrize("dtype", DTYPES)
def test_signed_zeros_tie(dtype):
    for zeros in ([-1.0, -0.0, 0.0, -2.0], [-1.0, 0.0, -0.0, -2.0], [-1.0, -0.0, -0.0, -2.0]):
        x = torch.full((1, 200), -3.0, dtype=dtype)
        x[0, 70:74] = torch.tensor(zeros, dtype=dtype)
        scores = score_rows(x)
        assert scores.token.item() == 71
        assert scores.margin is not None and scores.margin.item() == 0.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stats", [("token",), ("token", "logp"), ("token", "logp", "logp_T", "margin", "entropy")])
@pytest.mark.parametrize("bad, at", [("nan", 0), ("nan", 2500), ("-nan", 4099), ("inf", 2048), ("inf", 4099)])
def test_bad_entries_are_found_anywhere(dtype, stats, bad, at):
    x = random_logits(5, 4100, dtype, seed=11, spread=2.0)
    x[2, at] = -torch.tensor(float("nan")) if bad == "-nan" else float(bad)
    with pytest.raises(ValueError, match="NaN" if "nan" in bad else "inf"):
        score_rows(x, stats=stats)


def test_nan_beside_infinity_is_reported_as_nan():
    x = torch.zeros(1, 300)
    x[0, 10], x[0, 200] = float("inf"), float("nan")
    with pytest.raises(ValueError, match="NaN"):
        score_rows(x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_certain_rows_are_exact(dtype):
    x = torch.full((2, 5000), float("-inf"), dtype=dtype)
    x[0, 4321] = 3.0
    x[1, 17], x[1, 2000] = 20.0, -80.0  # a gap of 100 in one tile: below exp(-87), so nothing
    scores = score_rows(x, temperature=torch.tensor([1e-3]), seeds=2)
    assert scores.token.tolist() == [4321, 17]
    for value, expected in zip(scores[1:], (0.0, 0.0, 1.0, 0.0), strict=True):
        assert value is not None and value.tolist() == [expected, expected]


def test_confident_rows_keep_their_digits():
    x = torch.full((1, 126464), -50.0)
    x[0, 1000], x[0, 90000] = 29.0, 15.0  # z - logsumexp in fp32 would be 0 here
    expected = -torch.log1p(torch.tensor(-14.0, dtype=torch.float64).exp())
    logp = score_rows(x).logp
    assert logp is not None
    torch.testing.assert_close(logp[0].double(), expected, rtol=3e-7, atol=0.0)


@pytest.mark.parametrize("stats_from", ["raw", "tempered"])
def test_partials_then_finish_equal_the_single_op(stats_from):
    x = random_logits(12, WIDTH, torch.bfloat16, seed=12)
    keyed = {"temperature": 0.7, "seeds": 9, "stats_from": stats_from}
    partials = score_partials(x, temperature=0.7, stats_from=stats_from)
    for got, expected in zip(finish_scores(partials, logits=x, **keyed), score_rows(x, **keyed), strict=True):
        assert torch.equal(got, expected)


def test_compiled_backend_has_the_scoring_ops():
    for op in ("score_rows", "score_partials", "finish_scores"):
        assert "cpp" in available_backends(op)
    import mdlm_fast._C  # noqa: F401  the library is a Python module too
