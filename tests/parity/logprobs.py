"""`token_logprobs`, with and without the head: values against the float64 oracle, gradients against autograd's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from oracles import RowOracle
from parity.inputs import VALUES, placed, seeded, whole_numbers
from parity.measure import Case, Check, Measurement, Target, accuracy, gradient
from torch import Tensor

from mdlm_fast import ops

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = (BF16, F16, F32)
FULL_VOCABULARY = 126464


def dense(z: Tensor, targets: Tensor, temperature: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """(logp, entropy) by plain PyTorch in the dtype of z [N, V], differentiable."""
    log_p = torch.where(allowed, z / temperature.to(z.dtype)[:, None], -torch.inf).log_softmax(-1)
    entropy = -(log_p.exp() * torch.where(log_p > -torch.inf, log_p, 0.0)).sum(-1)
    return log_p.gather(1, targets[:, None])[:, 0], entropy


@dataclass(frozen=True)
class Spec:
    """`depth` 0: logits; else hidden states of that width in front of a head. `batch` x `length` rows, `count` named,
    some of them twice."""

    width: int
    count: int = 64
    batch: int = 3
    length: int = 30
    depth: int = 0
    values: str = "random"
    layout: str = "contiguous"
    bias: bool = True
    restricted: bool = True
    entropy_grad: bool = False
    one_temperature: bool = False
    dtypes: tuple[torch.dtype, ...] = DTYPES
    reduced: tuple[torch.dtype, ...] = ()

    @property
    def op(self) -> str:
        return "linear_token_logprobs" if self.depth else "token_logprobs"

    @property
    def name(self) -> str:
        flags = [self.layout, f"{self.count} of [{self.batch}, {self.length}]", f"V={self.width}"]
        flags += [f"H={self.depth}, bias {self.bias}"] if self.depth else [self.values]
        flags += ["gradient of the entropy"] if self.entropy_grad else []
        return ", ".join(flags)


@dataclass
class Problem:
    """Inputs on the CPU and what is right."""

    spec: Spec
    leaves: dict[str, Tensor]  # logits [B, L, V], or hidden [B, L, H], weight [V, H], bias [V]
    rows: Tensor  # int32 [N], the last -1
    targets: Tensor  # int64 [N]
    temperature: Tensor  # f32 [N] or [1]
    forbidden: Tensor  # int64 [K]
    limit: int
    allowed: Tensor  # bool [V]
    upstream: Tensor  # f32 [2, N]

    def loss(self, logp: Tensor, entropy: Tensor, live: Tensor) -> Tensor:
        first, second = self.upstream.to(logp.device, logp.dtype)[:, live.to(logp.device)]
        total = (logp * first).sum()
        return total + (entropy * second).sum() if self.spec.entropy_grad else total

    def run(self, target: Target) -> dict[str, Tensor]:
        leaves = {name: target.put(x) for name, x in self.leaves.items()}
        first = next(iter(leaves))
        leaves[first] = placed(self.leaves[first], self.spec.layout, target.device)
        leaves = {name: x.detach().requires_grad_() for name, x in leaves.items()}
        rows, targets, temperature, forbidden = (
            target.put(x) for x in (self.rows, self.targets, self.temperature, self.forbidden)
        )
        with ops.use_backend(target.backend):
            if self.spec.depth:
                op, inputs = ops.linear_token_logprobs, (leaves["hidden"], leaves["weight"], leaves.get("bias"))
            else:
                op, inputs = ops.token_logprobs, (leaves["logits"],)
            logp, entropy = op(
                *inputs, rows, targets, temperature, forbidden, self.limit, entropy_grad=self.spec.entropy_grad
            )
            live = self.rows >= 0
            here = live.to(logp.device)
            grads = torch.autograd.grad(self.loss(logp[here], entropy[here], live), list(leaves.values()))
        outputs = {"logp": logp.detach(), "entropy": entropy.detach()}
        outputs |= {f"gradient of {name}": grad for name, grad in zip(leaves, grads, strict=True)}
        return {name: x.cpu() for name, x in outputs.items()}

    def by_autograd(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Values and gradients by plain PyTorch in one dtype, for the live slots."""
        live = self.rows >= 0
        leaves = {name: x.to(dtype, copy=True).requires_grad_() for name, x in self.leaves.items()}
        first = next(iter(leaves.values()))
        picked = first.flatten(0, 1)[self.rows[live].long()]
        z = F.linear(picked, leaves["weight"], leaves.get("bias")) if self.spec.depth else picked
        temperature = self.temperature.expand(self.rows.numel())[live]
        logp, entropy = dense(z, self.targets[live], temperature, self.allowed)
        grads = torch.autograd.grad(self.loss(logp, entropy, live), list(leaves.values()))
        outputs = {"logp": logp.detach(), "entropy": entropy.detach()}
        return outputs | {f"gradient of {name}": g for name, g in zip(leaves, grads, strict=True)}

    def torch_errors(self) -> dict[str, float]:
        """The largest error of plain PyTorch in fp32 over every row there is: those that are named may be few."""
        total = self.spec.batch * self.spec.length
        every = replace(
            self,
            rows=torch.arange(total, dtype=torch.int32),
            targets=self.targets[torch.arange(total) % self.targets.numel()],
            temperature=self.temperature[torch.arange(total) % self.temperature.numel()],
            upstream=torch.zeros(2, total),
        )
        exact, fp32 = every.exact_values(), every.by_autograd(torch.float32)
        errors = {}
        for name, values in exact.items():
            with np.errstate(invalid="ignore"):
                difference = np.abs(values - fp32[name].double().numpy())
            errors[name] = float(difference[np.isfinite(difference)].max(initial=0.0))
        return errors

    def exact_values(self) -> dict[str, np.ndarray]:
        """logp and entropy of the live slots, in float64 from the definition."""
        live = self.rows >= 0
        leaves = {name: x.double() for name, x in self.leaves.items()}
        picked = next(iter(leaves.values())).flatten(0, 1)[self.rows[live].long()]
        z = F.linear(picked, leaves["weight"], leaves.get("bias")) if self.spec.depth else picked
        temperature = self.temperature.expand(self.rows.numel())[live].tolist()
        forbidden = tuple((~self.allowed).nonzero()[:, 0].tolist())
        oracles = [
            RowOracle(row, temperature=t, forbidden=forbidden) for row, t in zip(z.numpy(), temperature, strict=True)
        ]
        targets = self.targets[live].tolist()
        return {
            "logp": np.array([o.log_probs(True)[t] for o, t in zip(oracles, targets, strict=True)]),
            "entropy": np.array([o.entropy(True) for o in oracles]),
        }


def make_problem(spec: Spec, dtype: torch.dtype) -> Problem:
    g = seeded(spec.name)
    total = spec.batch * spec.length
    if spec.depth:
        leaves = {
            "hidden": whole_numbers(g, spec.batch, spec.length, spec.depth, depth=spec.depth),
            "weight": whole_numbers(g, spec.width, spec.depth, depth=spec.depth),
        }
        if spec.bias:
            leaves["bias"] = whole_numbers(g, spec.width, depth=spec.depth)
    else:
        leaves = {"logits": VALUES[spec.values](g, total, spec.width).view(spec.batch, spec.length, spec.width)}
    allowed = torch.ones(spec.width, dtype=torch.bool)
    limit = spec.width
    if spec.restricted and spec.width > 2:
        allowed = torch.rand(spec.width, generator=g) < 0.9
        limit = spec.width * 19 // 20
        allowed[limit:], allowed[0] = False, True
    # Ids below the limit and an id above it, in no order, one of them twice.
    forbidden = (~allowed).nonzero()[:, 0]
    forbidden = torch.cat([forbidden[torch.randperm(forbidden.numel(), generator=g)], forbidden[:1]])
    rows = torch.randint(0, total, (spec.count,), generator=g).int()
    rows[-1] = -1
    z = leaves["logits"].flatten(0, 1)[rows.long()] if not spec.depth else torch.zeros(spec.count, spec.width)
    weights = (torch.isfinite(z) & allowed).float()
    targets = torch.multinomial(weights, 1, generator=g)[:, 0]
    return Problem(
        spec,
        {name: x.to(dtype) for name, x in leaves.items()},
        rows,
        targets,
        torch.rand(1 if spec.one_temperature else spec.count, generator=g) + 0.5,
        forbidden,
        limit,
        allowed,
        torch.randn(2, spec.count, generator=g),
    )


SPECS = (
    *(Spec(width) for width in (1, 2, 31, 2047, 2049)),
    Spec(2300, count=12, reduced=DTYPES),
    Spec(2300, count=41, entropy_grad=True, layout="strided rows"),
    Spec(2300, count=13, entropy_grad=True, layout="sliced sequences", reduced=(BF16,)),
    Spec(31, count=20, entropy_grad=True, layout="misaligned rows", reduced=(F32,)),
    Spec(5001, entropy_grad=True, layout="misaligned rows"),
    Spec(9000, layout="strided rows", restricted=False, one_temperature=True),
    Spec(5001, values="peaked", entropy_grad=True),
    Spec(6000, values="empty tiles", restricted=False, entropy_grad=True),
    Spec(FULL_VOCABULARY, count=40, batch=1, length=48, dtypes=(BF16, F32), entropy_grad=True),
    Spec(2, depth=24),
    Spec(31, depth=33, bias=False),
    Spec(2300, depth=24, count=12, reduced=(F32,)),
    Spec(2300, depth=24, count=13, entropy_grad=True, layout="sliced sequences", reduced=(BF16,)),
    Spec(5001, depth=64, count=300, entropy_grad=True, bias=False),
    Spec(9000, depth=512, count=130, one_temperature=True, restricted=False),
    Spec(FULL_VOCABULARY, depth=64, count=70, batch=1, length=80, dtypes=(BF16,), bias=False),
)


def check(problem: Problem, exact: dict[str, Any], target: Target) -> Iterator[Measurement]:
    ours = problem.run(target)
    live = problem.rows >= 0
    wrong = (ours["logp"][~live] != -torch.inf).sum() + (ours["entropy"][~live] != 0).sum()
    yield Measurement("padding", float(wrong))
    for name in ("logp", "entropy"):
        fp32, elsewhere = exact["float32"][name], exact["elsewhere"][name]
        yield accuracy(name, ours[name][live], exact["values"][name], fp32, elsewhere)
    for name in ours.keys() - {"logp", "entropy"}:
        yield gradient(name, ours[name], exact["float64"][name], exact["same dtype"][name])
    if not problem.spec.depth:
        grad = ours["gradient of logits"].flatten(0, 1)
        unused = torch.ones(grad.shape[0], dtype=torch.bool)
        unused[problem.rows[live].long()] = False
        yield Measurement("gradient of rows that are not named", float((grad[unused] != 0).sum()))
        yield Measurement("gradient of forbidden ids", float((grad[:, ~problem.allowed] != 0).sum()))


def logprob_cases() -> Iterator[Case]:
    for spec in SPECS:
        for dtype in spec.dtypes:
            needs = (spec.op, f"{spec.op}_backward")
            yield Case(spec.op, spec.name, dtype, needs, _build(spec, dtype), dtype in spec.reduced)


def _build(spec: Spec, dtype: torch.dtype) -> Callable[[], Check]:
    def build() -> Check:
        problem = make_problem(spec, dtype)
        single = problem.by_autograd(torch.float32)
        exact = {
            "values": problem.exact_values(),
            "float32": single,
            "elsewhere": problem.torch_errors(),
            "float64": problem.by_autograd(torch.float64),
            "same dtype": single if dtype == torch.float32 else problem.by_autograd(dtype),
        }
        return lambda target: check(problem, exact, target)

    return build
