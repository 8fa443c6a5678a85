r"""Reference of `token_logprobs`, `linear_token_logprobs` and their gradients.

With y = z / T, p = softmax(y) over the allowed ids, M = max y at k, r = sum over v != k of exp(y_v - M) (see `_tiles`):

    logp_i = (y_t - M) - log1p(r)          lse = M + log1p(r)          H = log1p(r) - t / (1 + r)

Gradients, from y and lse alone (nothing of size [N, V] is kept between the passes), g = dL/dlogp, h = dL/dH; y - lse
is formed in fp64, where it keeps the digits of a confident row:

    dL/dz_v = (g (1[v = target] - p_v) - h p_v (log p_v + H)) / T,         p_v = exp(y_v - lse)

since dH/dy_v = -p_v (log p_v + H). Through an LM head z = W x + b: dL/dx = W^T dz, dL/dW = sum of dz x^T, dL/db = sum
of dz. Both products are accumulated in fp32 over the whole of the other dimension and rounded once; a chunk of the
vocabulary is recomputed, turned into dz and used for its own rows of dL/dW, so each of them is written once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mdlm_fast.ops._schemas import TILE
from mdlm_fast.ops.reference._rows import LinearRows, LogitRows, RowSource, gather_rows
from mdlm_fast.ops.reference._tiles import _CHUNK, allowed_ids, merge, tile_statistics

_NEG_INF = float("-inf")


def token_logprobs(
    logits: Tensor,
    rows: Tensor,
    targets: Tensor,
    temperature: Tensor,
    forbidden_ids: Tensor | None,
    vocab_limit: int,
    need_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `mdlm_fast.ops.token_logprobs`."""
    index = (rows >= 0).nonzero()[:, 0]
    source = LogitRows(logits, rows[index].long())
    return _forward(source, rows.numel(), index, targets, temperature, forbidden_ids, vocab_limit, need_entropy)


def linear_token_logprobs(
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
    """See `mdlm_fast.ops.linear_token_logprobs`."""
    index = (rows >= 0).nonzero()[:, 0]
    source = LinearRows(gather_rows(hidden, rows[index].long()), weight, bias)
    return _forward(source, rows.numel(), index, targets, temperature, forbidden_ids, vocab_limit, need_entropy)


def token_logprobs_backward(
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
    """dL/dlogits, in the dtype and shape of the logits; rows named twice add up."""
    index = (rows >= 0).nonzero()[:, 0]
    picked = rows[index].long()
    source = LogitRows(logits, picked)
    grad = torch.zeros(logits.shape, dtype=torch.float32, device=logits.device)
    flat = grad.view(-1, logits.shape[-1])
    for low, high, grad_z in _gradient_chunks(
        source, index, grad_logp, grad_entropy, targets, temperature, forbidden_ids, vocab_limit, entropy, lse
    ):
        flat[:, low:high].index_add_(0, picked, grad_z)
    return grad.to(logits.dtype)


def linear_token_logprobs_backward(
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
    """(dL/dhidden, dL/dweight, dL/dbias) in the dtypes of the inputs, empty [0] where not needed."""
    index = (rows >= 0).nonzero()[:, 0]
    picked = rows[index].long()
    x = gather_rows(hidden, picked)
    grad_x = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    grad_weight = torch.zeros(weight.shape if need_weight else (0,), dtype=weight.dtype, device=weight.device)
    grad_bias = torch.zeros(weight.shape[:1] if need_bias else (0,), dtype=weight.dtype, device=weight.device)
    for low, high, grad_z in _gradient_chunks(
        LinearRows(x, weight, bias),
        index,
        grad_logp,
        grad_entropy,
        targets,
        temperature,
        forbidden_ids,
        vocab_limit,
        entropy,
        lse,
    ):
        if need_hidden:
            grad_x += grad_z @ weight[low:high].float()
        if need_weight:
            grad_weight[low:high] = grad_z.t() @ x.float()
        if need_bias:
            grad_bias[low:high] = grad_z.sum(0)
    grad_hidden = torch.zeros(hidden.shape if need_hidden else (0,), dtype=torch.float32, device=hidden.device)
    if need_hidden:
        grad_hidden.view(-1, hidden.shape[-1]).index_add_(0, picked, grad_x)
    return grad_hidden.to(hidden.dtype), grad_weight, grad_bias


def _forward(
    source: RowSource,
    capacity: int,
    index: Tensor,
    targets: Tensor,
    temperature: Tensor,
    forbidden_ids: Tensor | None,
    vocab_limit: int,
    need_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    device = index.device
    logp = torch.full((capacity,), _NEG_INF, dtype=torch.float32, device=device)
    entropy = torch.zeros(capacity if need_entropy else 0, dtype=torch.float32, device=device)
    lse = torch.zeros(capacity, dtype=torch.float64, device=device)
    if index.numel():
        t, picked_targets = _per_row(temperature, index), targets[index].long()
        allowed = allowed_ids(source.width, 0, forbidden_ids, vocab_limit, device)
        statistics = tile_statistics(source, allowed, t, normalize_all=False, tempered_moment=True)
        normaliser = merge(statistics.top, statistics.tempered_rest, statistics.moment, t)
        z = _target_logits(source, picked_targets)
        z = torch.where(allowed[picked_targets], z, _NEG_INF)
        logp[index] = ((z.double() - normaliser.top) / t.double() - normaliser.log_sum).float()
        full = normaliser.top / t.double() + normaliser.log_sum
        lse[index] = torch.where(normaliser.top == torch.inf, torch.inf, full)  # tells +inf in a row from NaN
        if need_entropy:
            entropy[index] = normaliser.entropy.clamp(min=0.0).float()
    return logp, entropy, lse


def _target_logits(source: RowSource, targets: Tensor) -> Tensor:
    z = torch.empty(targets.shape, dtype=torch.float32, device=targets.device)
    tile = torch.div(targets, TILE, rounding_mode="floor")
    for j in tile.unique().tolist():
        index = (tile == j).nonzero()[:, 0]
        columns = source.subset(index).columns(j * TILE, min((j + 1) * TILE, source.width))
        z[index] = columns.gather(1, (targets[index] - j * TILE)[:, None])[:, 0]
    return z


def _gradient_chunks(
    source: RowSource,
    index: Tensor,
    grad_logp: Tensor,
    grad_entropy: Tensor | None,
    targets: Tensor,
    temperature: Tensor,
    forbidden_ids: Tensor | None,
    vocab_limit: int,
    entropy: Tensor,
    lse: Tensor,
) -> Iterator[tuple[int, int, Tensor]]:
    """(first column, end column, dL/dz f32 [rows, columns]) for chunks that cover the vocabulary."""
    allowed = allowed_ids(source.width, 0, forbidden_ids, vocab_limit, index.device)
    t = _per_row(temperature, index)[:, None]
    picked_targets = targets[index].long()
    g = (grad_logp[index].float() * allowed[picked_targets])[:, None]
    h = None if grad_entropy is None else grad_entropy[index].float()[:, None]
    width = max(TILE, _CHUNK // max(1, index.numel()) // TILE * TILE)
    for low in range(0, source.width, width):
        high = min(low + width, source.width)
        z = torch.where(allowed[low:high], source.columns(low, high), _NEG_INF)
        log_p = (z.double() / t.double() - lse[index, None]).float()
        p = log_p.exp()
        grad = -g * p
        if h is not None:
            grad -= h * torch.where(p > 0, p * (log_p + entropy[index, None]), 0.0)
        here = ((picked_targets >= low) & (picked_targets < high)).nonzero()[:, 0]
        grad[here, picked_targets[here] - low] += g[here, 0]
        yield low, high, grad / t


def _per_row(temperature: Tensor, index: Tensor) -> Tensor:
    return temperature[index] if temperature.numel() > 1 else temperature.expand(index.numel())
