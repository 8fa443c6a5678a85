"""Calls of every op, small enough for the host shim, whose outputs are compared bit for bit.

Inputs have what divides kernels' ways: padding, repeated rows, ties, rows with NaN and infinities, empty tiles,
forbidden ids, rows that do not begin at sixteen bytes, sequences greedy and sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from parity.commits import DISCOUNTS, RULES, commit_and_remask, random_step
from parity.inputs import VALUES, placed, seeded
from parity.measure import Target, short
from torch import Tensor

from mdlm_fast import ops
from mdlm_fast.ops._registry import implementation

FULL_VOCABULARY = 126464
RAGGED_VOCABULARY = 5003  # three tiles, the last of 907 columns
DTYPES = (torch.bfloat16, torch.float32, torch.float16)

Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Call:
    """One call on a backend; `run` makes its inputs anew, so that ops may write to them."""

    name: str
    needs: tuple[str, ...]
    run: Callable[[str], Outputs]
    large: bool = False

    def __str__(self) -> str:
        return self.name


def logits_of_every_kind(width: int, dtype: torch.dtype) -> Tensor:
    """[rows, V], two rows of each kind; misaligned where V is odd."""
    g = seeded("shim", width)
    rows = torch.cat([make(g, 2, width) for make in VALUES.values()])
    return placed(rows.to(dtype), "misaligned rows" if width % 2 else "contiguous", "cpu")


def named_rows(count: int) -> Tensor:
    """int32: all rows, the first once more, and padding at both ends."""
    return torch.cat([torch.tensor([-1]), torch.arange(count), torch.tensor([0, -1])]).int()


def score_arguments(count: int, width: int) -> dict:
    """Four sequences of which the first is greedy; keyword arguments of the scoring ops."""
    rows = named_rows(count)
    return {
        "row_sequence": torch.arange(rows.numel()).int() % 4,
        "row_position": torch.arange(rows.numel()).int() + 11,
        "temperature": torch.tensor([0.0, 0.6, 1.0, 1.7]),
        "seeds": torch.tensor([5, -6, 7, 1 << 50]),
        "step": 3,
        "forbidden_ids": torch.tensor([width - 1, 2, 2, 3]),
        "vocab_limit": width - width // 7,
    }


SCORE_OPTIONS = {
    "plain": {},
    "top-k": {"top_k": 40},
    "top-p": {"top_p": 0.9},
    "top-k and top-p": {"top_k": 300, "top_p": 0.7},
    "normalised over all ids, tempered": {"normalize_over": "all", "stats_from": "tempered"},
    "token alone": {"stats": ("token",)},
}


def score_call(width: int, dtype: torch.dtype, options: str, guided: bool) -> Call:
    def run(backend: str) -> Outputs:
        logits = logits_of_every_kind(width, dtype)[:: 3 if width == FULL_VOCABULARY else 1]
        count = logits.shape[0]
        arguments = score_arguments(count, width) | SCORE_OPTIONS[options]
        if guided:
            g = seeded("guidance", width)
            arguments["guidance_logits"] = torch.randn(count, width, generator=g).to(dtype)
            arguments["guidance_rows"] = named_rows(count).flip(0).clamp(min=0)
            arguments["guidance_scale"] = 1.5
        with ops.use_backend(backend):
            scores = ops.score_rows(logits, named_rows(count), **arguments)
        return {name: x for name, x in scores._asdict().items() if x is not None}

    name = f"score_rows V={width} {short(dtype)}, {options}{', guided' * guided}"
    return Call(name, ("score_rows",), run, width == FULL_VOCABULARY)


def bad_rows_call(dtype: torch.dtype) -> Call:
    """Rows with NaN, +inf and without a candidate, past the public function, which would refuse them on the CPU."""
    width = RAGGED_VOCABULARY

    def run(backend: str) -> Outputs:
        logits = logits_of_every_kind(width, dtype)
        logits[1, width // 3] = torch.nan
        logits[2, width // 2] = torch.inf
        logits[3] = -torch.inf
        arguments = score_arguments(logits.shape[0], width)
        keys = [arguments[name] for name in ("row_sequence", "row_position", "temperature", "seeds")]
        options = (width, 0, 1.0, True, False, False, 31)
        with ops.use_backend(backend):
            run_op = implementation("score_rows", "cpu", dtype)
        step = torch.tensor([3]).int()
        outputs = run_op(logits, named_rows(logits.shape[0]), *keys, step, None, None, None, 0.0, *options)
        return dict(zip(("token", "logp", "logp_T", "margin", "entropy"), outputs, strict=True))

    return Call(f"score_rows of bad rows {short(dtype)}", ("score_rows",), run)


def logprob_call(width: int, dtype: torch.dtype, entropy_grad: bool) -> Call:
    def run(backend: str) -> Outputs:
        logits = logits_of_every_kind(width, dtype)
        leaf = logits.requires_grad_()
        rows = named_rows(logits.shape[0])
        g = seeded("targets", width)
        targets = torch.randint(width // 2, (rows.numel(),), generator=g)
        temperature = torch.rand(rows.numel(), generator=g) + 0.5
        forbidden = torch.tensor([width - 1, 2, 2, 3])
        with ops.use_backend(backend):
            logp, entropy = ops.token_logprobs(leaf, rows, targets, temperature, forbidden, entropy_grad=entropy_grad)
            live = (rows >= 0) & torch.isfinite(logp.detach())
            loss = logp[live].sum() + (entropy[live].sum() if entropy_grad else 0)
            (grad,) = torch.autograd.grad(loss, leaf)
        return {"logp": logp.detach(), "entropy": entropy.detach(), "gradient": grad}

    name = f"token_logprobs V={width} {short(dtype)}{', gradient of the entropy' * entropy_grad}"
    return Call(name, ("token_logprobs", "token_logprobs_backward"), run, width == FULL_VOCABULARY)


def head_call(dtype: torch.dtype) -> Call:
    """The LM-head ops: GEMM by torch, the rest by the kernels."""
    width, depth = RAGGED_VOCABULARY, 24

    def run(backend: str) -> Outputs:
        g = seeded("head")
        hidden = torch.randn(12, depth, generator=g).to(dtype).requires_grad_()
        weight = (torch.randn(width, depth, generator=g) / 4).to(dtype).requires_grad_()
        rows = named_rows(12)
        targets = torch.randint(width // 2, (rows.numel(),), generator=g)
        with ops.use_backend(backend):
            scores = ops.linear_score_rows(
                hidden.detach(), weight.detach(), None, rows, **score_arguments(12, width), top_p=0.8
            )
            logp, _ = ops.linear_token_logprobs(hidden, weight, None, rows, targets)
            grads = torch.autograd.grad(logp[rows >= 0].sum(), [hidden, weight])
        outputs = {name: x for name, x in scores._asdict().items() if x is not None}
        return outputs | {"logp": logp.detach(), "gradient of hidden": grads[0], "gradient of weight": grads[1]}

    needs = ("linear_score_rows", "linear_token_logprobs", "linear_token_logprobs_backward")
    return Call(f"LM head {short(dtype)}", needs, run)


def commit_call(rule: str, discount: str, alg_temp: float, batch: int, length: int) -> Call:
    def run(backend: str) -> Outputs:
        outputs: Outputs = {}
        for variant in range(2):
            inputs = random_step(rule, discount, alg_temp, batch, length, variant)
            written = commit_and_remask(inputs, Target(backend, "cpu"))
            outputs |= {f"{name}, {variant}": x for name, x in written.items()}
        return outputs

    name = f"select_commit_ [{batch}, {length}] {rule}, discount {discount}, alg_temp {alg_temp}"
    return Call(name, ("select_commit_", "remask_"), run, length > 1024)


def all_calls() -> Iterator[Call]:
    for dtype in DTYPES:
        for options in SCORE_OPTIONS:
            yield score_call(RAGGED_VOCABULARY, dtype, options, guided=False)
        yield score_call(RAGGED_VOCABULARY, dtype, "top-p", guided=True)
        yield bad_rows_call(dtype)
        yield score_call(31, dtype, "plain", guided=False)
        yield logprob_call(RAGGED_VOCABULARY, dtype, entropy_grad=False)
        yield logprob_call(RAGGED_VOCABULARY, dtype, entropy_grad=True)
        yield head_call(dtype)
    for options in ("plain", "top-k and top-p"):
        yield score_call(FULL_VOCABULARY, torch.bfloat16, options, guided=False)
    yield logprob_call(FULL_VOCABULARY, torch.bfloat16, entropy_grad=True)
    for i, rule in enumerate(RULES):
        yield commit_call(rule, DISCOUNTS[i % 3], 0.7 * (i % 2), 3, 45)
    yield commit_call("quota", "none", 0.0, 2, 1024)
    yield commit_call("factor", "log", 0.0, 2, 9000)
