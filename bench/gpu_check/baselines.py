"""What is done without this package, in plain PyTorch: published systems' ways, and the shortest ones."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bench.baselines.llada import commit_best
from bench.baselines.logprobs import log_softmax_gather
from bench.baselines.score import dream, llada

__all__ = [
    "argmax",
    "commit_best",
    "five_statistics",
    "gumbel",
    "log_softmax_gather",
    "softmax_argmax_gather",
    "softmax_max",
    "top_k_sample",
    "top_p_sample",
]

softmax_argmax_gather = llada
gumbel = partial(llada, temperature=0.7)
top_k_sample = partial(dream, temperature=0.7, top_k=50)
top_p_sample = partial(dream, temperature=0.7, top_p=0.9)


def argmax(z: Tensor) -> object:
    return z.argmax(dim=-1)


def softmax_max(z: Tensor) -> object:
    return torch.softmax(z, dim=-1).max(dim=-1)


def five_statistics(z: Tensor) -> object:
    """Token, log-prob, margin and entropy in fp32."""
    log_p = z.float().log_softmax(-1)
    top = log_p.topk(2, dim=-1)
    p = log_p.exp()
    values = top.values.exp()
    return top.indices[:, 0], top.values[:, 0], values[:, 0] - values[:, 1], -(p * log_p).sum(-1)
