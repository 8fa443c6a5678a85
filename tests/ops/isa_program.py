"""Prints a digest of what the compiled ops return: run once per instruction set by the parity tests."""

from __future__ import annotations

import hashlib
import json

import torch

from mdlm_fast import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def digest(*tensors: torch.Tensor | None) -> str:
    return hashlib.sha256(b"".join(t.view(torch.uint8).numpy().tobytes() for t in tensors if t is not None)).hexdigest()


def logprobs(dtype: torch.dtype) -> str:
    """Forward and gradient of token_logprobs, whole and broken tiles, hot and cold rows."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(9, 4301, generator=generator) * torch.logspace(-3, 2, 9)[:, None]
    logits[:, 5::97] = -torch.inf
    logits = logits.to(dtype).requires_grad_()
    rows = torch.tensor([0, 3, 8, 3, -1, 6], dtype=torch.int32)
    targets = torch.tensor([0, 7, 4300, 8, 0, 2048])
    temperature = torch.tensor([1.0, 0.3, 2.0, 1.1, 1.0, 0.7])
    logp, entropy = ops.token_logprobs(logits, rows, targets, temperature, [2, 2050], 4301, entropy_grad=True)
    keep = rows >= 0
    ((logp * torch.linspace(-1, 2, 6))[keep].sum() + (entropy * torch.linspace(3, -1, 6))[keep].sum()).backward()
    return digest(logp.detach(), entropy.detach(), logits.grad)


def linear(dtype: torch.dtype) -> str:
    """linear_score_rows and linear_token_logprobs on whole numbers, whose sums are exact in any order."""
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randint(-3, 4, (20, 33), generator=generator).to(dtype)
    weight = torch.randint(-3, 4, (2500, 33), generator=generator).to(dtype)
    scores = ops.linear_score_rows(hidden, weight, temperature=0.8, seeds=7, sample=True)
    filtered = ops.linear_score_rows(hidden, weight, temperature=0.8, seeds=7, top_k=9, top_p=0.9)
    targets = torch.arange(20) * 71
    logp, entropy = ops.linear_token_logprobs(hidden, weight, None, None, targets)
    return digest(*scores, *filtered, logp, entropy)


def linear_gradients(dtype: torch.dtype) -> str:
    """Gradients of linear_token_logprobs where they are exact: hidden states and weight share no column, so that every
    logit is 0 and every probability 1/2048."""
    if dtype == torch.float32:
        return ""  # 1/2048 has an error of a rounding there, and sums depend on their order
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randint(-3, 4, (1100, 71), generator=generator).to(dtype)
    weight = torch.randint(-3, 4, (2048, 71), generator=generator).to(dtype)
    hidden[:, 1::2] = 0
    weight[:, ::2] = 0
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    targets = torch.randint(2048, (1100,), generator=generator)
    logp, _ = ops.linear_token_logprobs(hidden, weight, None, None, targets)
    (logp * torch.randint(-2, 3, (1100,), generator=generator)).sum().backward()
    return digest(logp.detach(), hidden.grad, weight.grad)


if __name__ == "__main__":
    with ops.use_backend("cpp"):
        parts = (logprobs, linear, linear_gradients)
        print(json.dumps({f"{f.__name__} {dtype}": f(dtype) for dtype in DTYPES for f in parts}))
