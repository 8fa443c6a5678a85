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


if __name__ == "__main__":
    with ops.use_backend("cpp"):
        print(json.dumps({f"{f.__name__} {dtype}": f(dtype) for dtype in DTYPES for f in (logprobs, linear)}))
