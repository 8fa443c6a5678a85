"""HeadGradient: the gradient of an LM head over many calls of `linear_token_logprobs`, computed in one product.

With g_n the gradient of the loss with respect to log-prob n, p_n the distribution of its row and h_n its hidden state,

    dL/dW = sum_n g_n (onehot(target_n) - p_n) h_n^T / T_n

whichever call n belongs to. Hidden states of scored rows and two numbers a row are all it needs, so calls whose other
graphs are long gone can share one product: W's gradient (1 GB for LLaDA-8B) is written once, not once a call with as
much again to add it up, and its sum over rows is accumulated in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mdlm_fast.ops import _arguments as arguments
from mdlm_fast.ops.linear_score_rows import check_head
from mdlm_fast.ops.linear_token_logprobs import _linear_token_logprobs, _linear_token_logprobs_backward
from mdlm_fast.ops.token_logprobs import target_arguments

_OP = "linear_token_logprobs"


@dataclass
class _Call:
    """hidden: [N, H]. targets: int64 [N]. temperature, lse: [N]. gradient: float32 [N] once a backward pass gave it."""

    hidden: Tensor
    targets: Tensor
    temperature: Tensor
    lse: Tensor
    gradient: Tensor | None = None


class HeadGradient:
    """Stands in for `linear_token_logprobs` in several forward passes, and adds the head's gradient at their end.

    All calls are of one head and one set of ids. Hooks of the head's parameters do not see the gradient: reduce it over
    processes afterwards, or not at all.
    """

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._head: tuple[Tensor, Tensor | None, Tensor | None, int] | None = None

    def logprobs(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: Tensor | float = 1.0,
        forbidden_ids: Tensor | list[int] | tuple[int, ...] | int | None = None,
        vocab_limit: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`linear_token_logprobs` of all rows of hidden [N, H]; its gradient flows to hidden alone.

        weight, bias: the parameters, whose gradient `add` computes. A cast of theirs is made here where hidden has
        another dtype (autocast).
        """
        operands = _operands(weight, bias, hidden.dtype)
        check_head(_OP, hidden, *operands)
        rows, targets, temperature = target_arguments(_OP, hidden, None, targets, temperature)
        device, vocabulary = hidden.device, weight.shape[0]
        forbidden, limit = arguments.vocabulary_arguments(_OP, vocabulary, device, forbidden_ids, vocab_limit)
        self._head = (weight, bias, forbidden, limit)
        logp, entropy, lse = _linear_token_logprobs(
            hidden, *operands, rows, targets, temperature, forbidden, limit, True
        )
        call = _Call(hidden.detach(), targets, temperature.expand(targets.shape[0]), lse.detach())
        self._calls.append(call)

        def keep(gradient: Tensor) -> None:
            call.gradient = gradient.detach().float()

        logp.register_hook(keep)
        return logp, entropy.detach()

    def clear(self) -> None:
        """Forgets the calls since the last time, of passes that came to nothing."""
        self._calls = []

    def add(self) -> None:
        """Adds the gradient of all calls since the last time to the parameters' `.grad`, rounded once."""
        calls = [call for call in self._calls if call.gradient is not None]
        self._calls = []
        if not calls or self._head is None:
            return
        weight, bias, forbidden, limit = self._head
        hidden = torch.cat([call.hidden for call in calls])
        lse = torch.cat([call.lse for call in calls])
        need_bias = bias is not None and bias.requires_grad
        _, weight_gradient, bias_gradient = _linear_token_logprobs_backward(
            torch.cat([call.gradient for call in calls if call.gradient is not None]),
            None,
            hidden,
            *_operands(weight, bias, hidden.dtype),
            torch.arange(hidden.shape[0], dtype=torch.int32, device=hidden.device),
            torch.cat([call.targets for call in calls]),
            torch.cat([call.temperature for call in calls]),
            forbidden,
            limit,
            torch.zeros(hidden.shape[0], dtype=torch.float32, device=hidden.device),
            lse,
            False,
            weight.requires_grad,
            need_bias,
        )
        if weight.requires_grad:
            _accumulate(weight, weight_gradient)
        if bias is not None and need_bias:
            _accumulate(bias, bias_gradient)


def _operands(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype).contiguous()


def _accumulate(parameter: Tensor, gradient: Tensor) -> None:
    gradient = gradient.to(parameter.dtype)
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad += gradient
