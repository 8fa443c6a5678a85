"""`token_logprobs`: log-probabilities of given tokens, differentiable, without a stored log-softmax."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mdlm_fast.ops import _arguments as arguments
from mdlm_fast.ops import _checks as checks
from mdlm_fast.ops._dispatch import autograd, call, define
from mdlm_fast.ops.reference._rows import gather_rows

_OP = "token_logprobs"
_BACKWARD = "token_logprobs_backward"


def token_logprobs(
    logits: Tensor,
    rows: Tensor | None,
    targets: Tensor,
    temperature: Tensor | float = 1.0,
    forbidden_ids: Tensor | Iterable[int] | int | None = None,
    vocab_limit: int | None = None,
    *,
    entropy_grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """log softmax(logits[rows] / temperature)[targets] over the allowed ids, and the entropy of that distribution.

    Values are computed in fp32 whatever the dtype. The backward pass recomputes the probabilities from the logits and
    one number per row.

    Args:
        logits: float32, bfloat16, float16 (or float64, rounded to fp32), [M, V] or [B, L, V], any strides.
        rows: int32 or int64 [N], indices into the flattened leading dimensions, -1 = padding; None = all rows, in
            order.
        targets: int64 or int32 [N], the token of each row; ignored for padding.
        temperature: float or tensor [1] or [N], > 0.
        forbidden_ids: ids outside the distribution: a tensor, an int or a list. Pass what the rollout forbade, or the
            ratio of new to old probabilities is not 1.
        vocab_limit: ids >= vocab_limit are outside the distribution; default V.
        entropy_grad: let gradients flow through the entropy.

    Returns:
        (logp f32 [N], entropy f32 [N]) in nats. Padding: (-inf, 0), no gradient.

    Raises:
        ValueError: wrong shapes, devices or values; on CPU also a target that is forbidden, or a row that holds
            NaN or +inf or has no candidate left. (Elsewhere a forbidden target has logp -inf and no gradient.)
        TypeError: wrong dtypes.
    """
    checks.check_leading(_OP, "logits", logits)
    rows, targets, temperature = target_arguments(_OP, logits, rows, targets, temperature)
    forbidden, limit = arguments.vocabulary_arguments(_OP, logits.shape[-1], logits.device, forbidden_ids, vocab_limit)
    logp, entropy, _ = _token_logprobs(logits, rows, targets, temperature, forbidden, limit, True)
    return logp, entropy if entropy_grad else entropy.detach()


def target_arguments(
    op: str, like: Tensor, rows: Tensor | None, targets: Tensor, temperature: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    """(rows int32 [N], targets int64 [N], temperature f32 [1] or [N]), checked."""
    device = like.device
    rows = arguments.row_indices(op, rows, like.shape[:-1], device)
    count = rows.shape[0]
    checks.check_tensor(op, "targets", targets, (count,), (torch.int32, torch.int64), device)
    if isinstance(temperature, Tensor):
        if not temperature.is_floating_point() or temperature.numel() not in (1, count):
            raise ValueError(
                f"{op}: temperature must be a float or a floating tensor [1] or [{count}], "
                f"got {temperature.dtype} {list(temperature.shape)}"
            )
        if temperature.device != device:
            raise ValueError(f"{op}: temperature is on {temperature.device}, the other tensors on {device}; move it")
        temperature = temperature.detach().reshape(-1).float().contiguous()
    else:
        if not 0.0 < temperature < float("inf"):
            raise ValueError(f"{op}: temperature={temperature} must be finite and > 0")
        temperature = torch.full((1,), float(temperature), dtype=torch.float32, device=device)
    return rows, targets.long().contiguous(), temperature


def check_target_values(
    op: str,
    like: Tensor,
    vocab_size: int,
    rows: Tensor,
    targets: Tensor,
    temperature: Tensor,
    forbidden: Tensor | None,
    vocab_limit: int,
) -> None:
    """Value checks of both log-prob ops (CPU only)."""
    if rows.device.type != "cpu":
        return
    checks.check_range(op, "rows", rows, -1, like.shape[:-1].numel())
    checks.check_range(op, "targets", targets.masked_fill(rows < 0, 0), 0, vocab_size)
    checks.check_range(op, "forbidden_ids", forbidden, 0, vocab_size)
    checks.check_temperature(op, temperature, positive=True)
    outside = targets >= vocab_limit
    if forbidden is not None:
        outside |= torch.isin(targets, forbidden)
    outside &= rows >= 0
    if outside.any():
        at = int(outside.nonzero()[0])
        raise ValueError(
            f"{op}: targets[{at}] = {int(targets[at])} is in forbidden_ids or not below vocab_limit={vocab_limit}; "
            "its log-probability is -inf"
        )


def _run(
    logits: Tensor,
    rows: Tensor,
    targets: Tensor,
    temperature: Tensor,
    forbidden_ids: Tensor | None,
    vocab_limit: int,
    need_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    check_target_values(_OP, logits, logits.shape[-1], rows, targets, temperature, forbidden_ids, vocab_limit)
    logits, kernel_rows = arguments.with_unit_stride(logits, rows)
    outputs = call(_OP, logits, logits, kernel_rows, targets, temperature, forbidden_ids, vocab_limit, need_entropy)
    checks.check_normaliser(_OP, outputs[2], rows)
    return outputs


def _fake(logits: Tensor, rows: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor]:
    return fake_logprobs(rows, bool(rest[-1]))


def fake_logprobs(rows: Tensor, need_entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes of the outputs of a log-prob op."""
    per_row = rows.new_empty(rows.shape, dtype=torch.float32)
    lse = torch.empty_like(per_row, dtype=torch.float64)
    return per_row, per_row.new_empty(rows.shape if need_entropy else (0,)), lse


def _run_backward(
    grad_logp: Tensor,
    grad_entropy: Tensor | None,
    logits: Tensor,
    rows: Tensor,
    targets: Tensor,
    temperature: Tensor,
    forbidden_ids: Tensor | None,
    vocab_limit: int,
    entropy: Tensor,
    lse: Tensor,
) -> Tensor:
    kernel_logits, kernel_rows = arguments.with_unit_stride(logits, rows)
    grad = call(
        _BACKWARD,
        logits,
        grad_logp.contiguous(),
        None if grad_entropy is None else grad_entropy.contiguous(),
        kernel_logits,
        kernel_rows,
        targets,
        temperature,
        forbidden_ids,
        vocab_limit,
        entropy,
        lse,
    )
    return grad if kernel_logits is logits else scatter_gradient(grad, logits, rows)


def scatter_gradient(grad: Tensor, like: Tensor, rows: Tensor) -> Tensor:
    """The gradient of `like` from that of its rows gathered by `with_unit_stride`."""
    index = (rows >= 0).nonzero()[:, 0]
    full = torch.zeros(like.shape, dtype=torch.float32, device=like.device)
    full.view(-1, like.shape[-1]).index_add_(0, rows[index].long(), gather_rows(grad, index).float())
    return full.to(like.dtype)


def _fake_backward(grad_logp: Tensor, grad_entropy: Tensor | None, logits: Tensor, *rest: object) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, rows, targets, temperature, forbidden_ids, vocab_limit, need_entropy = inputs
    _, entropy, lse = output
    ctx.save_for_backward(logits, rows, targets, temperature, forbidden_ids, entropy, lse)
    ctx.vocab_limit, ctx.need_entropy = vocab_limit, need_entropy
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None, grad_lse: Tensor | None
) -> tuple[Any, ...]:
    logits, rows, targets, temperature, forbidden_ids, entropy, lse = ctx.saved_tensors
    grad = None
    if grad_logp is not None or grad_entropy is not None:
        grad = _token_logprobs_backward(
            torch.zeros_like(lse, dtype=torch.float32) if grad_logp is None else grad_logp,
            grad_entropy if ctx.need_entropy else None,
            logits,
            rows,
            targets,
            temperature,
            forbidden_ids,
            ctx.vocab_limit,
            entropy,
            lse,
        )
    return grad, None, None, None, None, None, None


_token_logprobs = define(_OP, _run, _fake)
_token_logprobs_backward = define(_BACKWARD, _run_backward, _fake_backward)
autograd(_OP, _backward, _setup_context)
