"""`linear_token_logprobs`: `token_logprobs` fused with the LM head: no [N, V] logits, no [N, V] gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mdlm_fast.ops import _arguments as arguments
from mdlm_fast.ops import _checks as checks
from mdlm_fast.ops._dispatch import autograd, call, define
from mdlm_fast.ops.linear_score_rows import check_head
from mdlm_fast.ops.token_logprobs import check_target_values, fake_logprobs, scatter_gradient, target_arguments

_OP = "linear_token_logprobs"
_BACKWARD = "linear_token_logprobs_backward"


def linear_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    targets: Tensor,
    temperature: Tensor | float = 1.0,
    forbidden_ids: Tensor | Iterable[int] | int | None = None,
    vocab_limit: int | None = None,
    *,
    entropy_grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """`token_logprobs` of F.linear(hidden[rows], weight, bias), a tile of the vocabulary at a time.

    Logits are rounded to the input dtype, as F.linear would. The products of the backward pass are accumulated in
    fp32 and rounded once, and each part of the weight's gradient is written once.

    Args:
        hidden: floating, [M, H] or [B, L, H], any strides.
        weight: same dtype, [V, H].
        bias: same dtype, [V], or None.
        rows: int32 or int64 [N], indices into the flattened leading dimensions of hidden, -1 = padding; None = all.
        Others: see `token_logprobs`.

    Returns:
        (logp f32 [N], entropy f32 [N]), differentiable with respect to hidden, weight and bias; see `token_logprobs`.

    Raises: see `token_logprobs`.

    Source: the recomputation of tiles follows Cut Cross-Entropy (arXiv:2411.09009).
    """
    check_head(_OP, hidden, weight, bias)
    rows, targets, temperature = target_arguments(_OP, hidden, rows, targets, temperature)
    forbidden, limit = arguments.vocabulary_arguments(_OP, weight.shape[0], hidden.device, forbidden_ids, vocab_limit)
    bias = None if bias is None else bias.contiguous()
    logp, entropy, _ = _linear_token_logprobs(hidden, weight, bias, rows, targets, temperature, forbidden, limit, True)
    return logp, entropy if entropy_grad else entropy.detach()


def _run(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    targets: Tensor,
    temperature: Tensor,
    forbidden_ids: Tensor | None,
    vocab_limit: int,
    need_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    check_target_values(_OP, hidden, weight.shape[0], rows, targets, temperature, forbidden_ids, vocab_limit)
    kernel_hidden, kernel_rows = arguments.with_unit_stride(hidden, rows)
    outputs = call(
        _OP,
        hidden,
        kernel_hidden,
        weight,
        bias,
        kernel_rows,
        targets,
        temperature,
        forbidden_ids,
        vocab_limit,
        need_entropy,
    )
    checks.check_normaliser(_OP, outputs[2], rows)
    return outputs


def _fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, *rest: object
) -> tuple[Tensor, Tensor, Tensor]:
    return fake_logprobs(rows, bool(rest[-1]))


def _run_backward(
    grad_logp: Tensor,
    grad_entropy: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    targets: Tensor,
    temperature: Tensor,
    forbidden_ids: Tensor | None,
    vocab_limit: int,
    entropy: Tensor,
    lse: Tensor,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    kernel_hidden, kernel_rows = arguments.with_unit_stride(hidden, rows)
    grad_hidden, grad_weight, grad_bias = call(
        _BACKWARD,
        hidden,
        grad_logp.contiguous(),
        None if grad_entropy is None else grad_entropy.contiguous(),
        kernel_hidden,
        weight,
        bias,
        kernel_rows,
        targets,
        temperature,
        forbidden_ids,
        vocab_limit,
        entropy,
        lse,
        need_hidden,
        need_weight,
        need_bias,
    )
    if need_hidden and kernel_hidden is not hidden:
        grad_hidden = scatter_gradient(grad_hidden, hidden, rows)
    return grad_hidden, grad_weight, grad_bias


def _fake_backward(
    grad_logp: Tensor, grad_entropy: Tensor | None, hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: object
) -> tuple[Tensor, Tensor, Tensor]:
    need_hidden, need_weight, need_bias = rest[-3:]
    return (
        torch.empty(hidden.shape if need_hidden else (0,), dtype=hidden.dtype, device=hidden.device),
        torch.empty(weight.shape if need_weight else (0,), dtype=weight.dtype, device=weight.device),
        torch.empty(weight.shape[:1] if need_bias else (0,), dtype=weight.dtype, device=weight.device),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, bias, rows, targets, temperature, forbidden_ids, vocab_limit, need_entropy = inputs
    _, entropy, lse = output
    ctx.save_for_backward(hidden, weight, bias, rows, targets, temperature, forbidden_ids, entropy, lse)
    ctx.vocab_limit, ctx.need_entropy = vocab_limit, need_entropy
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None, grad_lse: Tensor | None
) -> tuple[Any, ...]:
    hidden, weight, bias, rows, targets, temperature, forbidden_ids, entropy, lse = ctx.saved_tensors
    need_hidden, need_weight = ctx.needs_input_grad[:2]
    need_bias = bias is not None and ctx.needs_input_grad[2]
    grads: list[Tensor | None] = [None, None, None]
    if grad_logp is not None or grad_entropy is not None:
        computed = _linear_token_logprobs_backward(
            torch.zeros_like(lse, dtype=torch.float32) if grad_logp is None else grad_logp,
            grad_entropy if ctx.need_entropy else None,
            hidden,
            weight,
            bias,
            rows,
            targets,
            temperature,
            forbidden_ids,
            ctx.vocab_limit,
            entropy,
            lse,
            need_hidden,
            need_weight,
            need_bias,
        )
        grads = [g if need else None for g, need in zip(computed, (need_hidden, need_weight, need_bias), strict=True)]
    return *grads, None, None, None, None, None, None


_linear_token_logprobs = define(_OP, _run, _fake)
_linear_token_logprobs_backward = define(_BACKWARD, _run_backward, _fake_backward)
autograd(_OP, _backward, _setup_context)
