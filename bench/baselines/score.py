"""How published decoders turn rows of logits into tokens and confidences: the scoring part of a step alone.

The same passes in the same dtypes as in the whole decoders beside this file. Logits are [N, V] of any floating dtype;
draws use torch's generator.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .dream import draw
from .llada import gumbel, probability_of

EPSILON = 1e-10  # what Dream and MDPO add to a probability before its logarithm


class Scored(NamedTuple):
    """What a system knows of each row.

    Attributes:
        token: int64 [N].
        confidence: [N], the probability of `token`, in the dtype in which the system ranks.
        margin: [N], probability of the best less that of the second best; None where it is not computed.
        entropy: [N], nats; None where it is not computed.
    """

    token: Tensor
    confidence: Tensor
    margin: Tensor | None = None
    entropy: Tensor | None = None


def llada(logits: Tensor, temperature: float = 0.0) -> Scored:
    """LLaDA (arXiv 2502.09992): noise in float64, and a softmax in the logits' dtype for one probability a row."""
    token = gumbel(logits, temperature).argmax(-1)
    return Scored(token, probability_of(logits, token))


def eoser_rollout(logits: Tensor, temperature: float) -> Scored:
    """The rollout of CJ-GRPO's trainers (arXiv 2509.23924): noise in the logits' dtype too. In 16 bits the noise has
    few values, and its draws are far more likely tokens than the model's."""
    token = gumbel(logits, temperature, logits.dtype).argmax(-1)
    return Scored(token, probability_of(logits, token))


def fast_dllm(logits: Tensor, temperature: float = 0.0) -> Scored:
    """Fast-dLLM (arXiv 2505.22618): as LLaDA, with the softmax in float64."""
    token = gumbel(logits, temperature).argmax(-1)
    return Scored(token, probability_of(logits.double(), token))


def dinfer(logits: Tensor, temperature: float = 0.0) -> Scored:
    """dInfer (arXiv 2510.08666): noise in float64, the softmax in float32; the release compiles it."""
    token = gumbel(logits, temperature).argmax(-1)
    return Scored(token, probability_of(logits.float(), token))


def dream(logits: Tensor, temperature: float, top_p: float | None = None, top_k: int | None = None) -> Scored:
    """Dream (arXiv 2508.15487) with the confidence "maskgit_plus": division, filters, softmax and draw in the logits'
    dtype; the confidence is the probability of the distribution drawn from."""
    if top_k is not None:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], torch.finfo(logits.dtype).min)
    _, token, confidence = draw(logits, temperature, top_p)
    return Scored(token, confidence)


def mdpo(logits: Tensor, temperature: float, top_p: float | None = None, top_k: int | None = None) -> Scored:
    """MDPO (arXiv 2508.13148): as Dream, under an autocast: division, sort and top-k in the logits' dtype, what follows
    the softmax in float32."""
    with Autocast():
        return dream(logits, temperature, top_p, top_k)


class Autocast(TorchFunctionMode):
    """Of autocast on a GPU what concerns the scoring of logits, on any device: softmax and cumsum take float32."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in (Tensor.softmax, Tensor.cumsum):
            args = (args[0].float(), *args[1:])
        return function(*args, **(kwargs or {}))


def dream_statistics(logits: Tensor) -> Scored:
    """Dream's three confidences from one softmax in the logits' dtype: the maximum, the margin by a full sort, the
    entropy. A decode of Dream's needs one of the three; here all are asked for, as one read of ours gives all."""
    p = logits.softmax(-1)  # [N, V]
    confidence, token = p.max(-1)
    ranked = p.sort(-1, descending=True).values
    entropy = -(p * (p + EPSILON).log()).sum(-1)
    return Scored(token, confidence, ranked[:, 0] - ranked[:, 1], entropy)


def mdpo_statistics(logits: Tensor) -> Scored:
    """MDPO's confidences: as Dream's, in float32 from the softmax on."""
    with Autocast():
        return dream_statistics(logits)


def likeliest(logits: Tensor) -> Scored:
    """Token and probability in float32, arranged for torch.compile: the column by a minimum, as the compiler's argmax
    is three times as slow on the CPU, and no probability but the one that is asked for."""
    z = logits.float()
    top = z.amax(-1, keepdim=True)
    token = torch.where(z == top, columns(z), z.shape[1]).amin(-1)
    return Scored(token.long(), 1 / (z - top).exp().sum(-1))


def race(logits: Tensor, temperature: float) -> Scored:
    """A draw and its plain probability in float32, arranged for torch.compile: Gumbel noise, one uniform number and two
    logarithms an element, which was faster than exponential numbers, `multinomial` and the compiler's argmax."""
    z = logits.float()
    d = z - z.amax(-1, keepdim=True)
    noisy = d / temperature - (-torch.rand_like(d).log()).log()  # [N, V]
    token = torch.where(noisy == noisy.amax(-1, keepdim=True), columns(z), z.shape[1]).amin(-1).long()
    return Scored(token, d.gather(-1, token[:, None])[:, 0].exp() / d.exp().sum(-1))


def five_statistics(logits: Tensor) -> Scored:
    """Token, probability, margin and entropy in float32, arranged for torch.compile: no sort, all sums from the same
    exponentials. The fastest of the forms we tried. (At temperature 1 the tempered log-prob is the log-prob.)"""
    z = logits.float()
    top = z.amax(-1, keepdim=True)
    best = z == top  # [N, V]
    token = torch.where(best, columns(z), z.shape[1]).amin(-1)
    last = torch.where(best, columns(z), -1).amax(-1)
    d = z - top
    e = d.exp()
    total = e.sum(-1)
    second = torch.where(best, -torch.inf, d).amax(-1)
    second = torch.where(last > token, 0.0, second)  # two columns share the maximum
    return Scored(token.long(), 1 / total, (1 - second.exp()) / total, total.log() - (d * e).sum(-1) / total)


def columns(z: Tensor) -> Tensor:
    """int32 [V]: 64-bit columns would halve the width of vector instructions."""
    return torch.arange(z.shape[1], dtype=torch.int32, device=z.device)


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under torch.compile, for all shapes at once, as dInfer compiles its own. The first call takes
    seconds, and so does the first of another dtype, with one row, or with a row of few columns. Past a limit of such
    variants torch.compile runs a function uncompiled, without a word; here it may not.

    Random numbers come from torch's own generator on the CPU, where the compiler's takes twice as long as all the rest.
    Compiling stays in this process: the compiler's pool of others keeps a core busy while it starts.
    """
    torch._inductor.config.compile_threads = 1
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    on = {
        kind: torch.compile(function, dynamic=True, fullgraph=True, options={"fallback_random": kind == "cpu"})
        for kind in ("cpu", "cuda")
    }
    return lambda tensor, *rest: on[tensor.device.type](tensor, *rest)
