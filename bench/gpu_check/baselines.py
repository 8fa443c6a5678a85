"""What decoders and trainers do without this package, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def argmax(z: Tensor) -> object:
    return z.argmax(dim=-1)


def softmax_max(z: Tensor) -> object:
    return torch.softmax(z, dim=-1).max(dim=-1)


def softmax_argmax_gather(z: Tensor) -> object:
    """Confidence of the most likely token."""
    p = torch.softmax(z, dim=-1)
    token = torch.argmax(z, dim=-1)
    return token, p.gather(-1, token[:, None])


def five_statistics(z: Tensor) -> object:
    """Token, log-prob, margin and entropy in fp32."""
    log_p = z.float().log_softmax(-1)
    top = log_p.topk(2, dim=-1)
    p = log_p.exp()
    values = top.values.exp()
    return top.indices[:, 0], top.values[:, 0], values[:, 0] - values[:, 1], -(p * log_p).sum(-1)


def gumbel(z: Tensor, temperature: float = 0.7) -> object:
    """LLaDA at a temperature: Gumbel noise in float64 on every entry, then softmax for the confidence."""
    logits = z.to(torch.float64)
    noise = (-torch.log(torch.rand_like(logits))) ** temperature
    token = torch.argmax(logits.exp() / noise, dim=-1)
    return token, torch.softmax(z, dim=-1).gather(-1, token[:, None])


def top_k_sample(z: Tensor, k: int = 50, temperature: float = 0.7) -> object:
    """Sampling from the k most likely, as Dream does: mask, softmax, multinomial."""
    scaled = z / temperature
    scaled = scaled.masked_fill(scaled < scaled.topk(k, dim=-1).values[:, -1:], -torch.inf)
    p = torch.softmax(scaled, dim=-1)
    token = torch.multinomial(p, 1)
    return token, p.gather(-1, token)


def top_p_sample(z: Tensor, top_p: float = 0.9, temperature: float = 0.7) -> object:
    """Sampling from the most likely that hold `top_p`, as Dream does: sort, cumulate, mask, softmax, multinomial."""
    scaled = z / temperature
    values, order = torch.sort(scaled, dim=-1, descending=True)
    remove = torch.softmax(values, dim=-1).cumsum(-1) > top_p
    remove[:, 1:] = remove[:, :-1].clone()
    remove[:, 0] = False
    scaled = scaled.masked_fill(torch.zeros_like(remove).scatter(-1, order, remove), -torch.inf)
    p = torch.softmax(scaled, dim=-1)
    token = torch.multinomial(p, 1)
    return token, p.gather(-1, token)


def commit_loop(canvas: Tensor, confidence: Tensor, token: Tensor, quota: Tensor) -> None:
    """One top-k per sequence, as LLaDA and its descendants write it: confidence (-inf: no candidate), token [B, L]."""
    transfer = torch.zeros_like(canvas, dtype=torch.bool)
    for b in range(canvas.shape[0]):
        _, best = torch.topk(confidence[b], k=int(quota[b]))
        transfer[b, best] = True
    canvas[transfer] = token[transfer]


def log_softmax_gather(z: Tensor, targets: Tensor) -> Tensor:
    return z.log_softmax(-1).gather(1, targets[:, None])[:, 0]
