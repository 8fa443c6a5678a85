"""The LM-head ops from a vendor library's GEMM and a backend's kernels on rows of logits.

Logits go through a scratch tensor in the input dtype that stays below `SCRATCH_BYTES` (256 MiB). Scoring takes as many
rows at a time as fit, all of them for decoding. Log-probs and their gradients take all rows and as many tiles of the
vocabulary as fit (at least one), so that each part of the weight's gradient is written once: a chunk of logits is
computed again by the same GEMM, turned into dL/dlogits in place, and multiplied into both gradients. Derivations:
`mdlm_fast.ops.reference.token_logprobs`.

Each function takes the backend's kernel first and then the arguments of the op's schema. Nothing waits for the device:
padding rows are computed like others, from hidden row 0, and left out of every result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mdlm_fast.ops._registry import Implementation
from mdlm_fast.ops._schemas import STAT_BITS, TILE

#: Of the logits held at a time.
SCRATCH_BYTES = 256 << 20


@torch.no_grad()
def linear_score_rows(
    score_rows: Implementation,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    row_sequence: Tensor,
    row_position: Tensor,
    temperature: Tensor,
    seeds: Tensor,
    step: Tensor,
    forbidden_ids: Tensor | None,
    guidance_hidden: Tensor | None,
    guidance_rows: Tensor | None,
    guidance_scale: float,
    *options: int | float | bool,
) -> tuple[Tensor, ...]:
    """See `mdlm_fast.ops.linear_score_rows`."""
    per_call = (temperature, seeds, step, forbidden_ids)

    def run(group: slice, logits: Tensor, numbers: Tensor, *guidance: Tensor | None) -> tuple[Tensor, ...]:
        per_row = (numbers, row_sequence[group], row_position[group])
        return score_rows(logits, *per_row, *per_call, *guidance, guidance_scale, *options)

    return on_logits(run, hidden, weight, bias, rows, guidance_hidden, guidance_rows)


@torch.no_grad()
def finish_scores(
    finish: Implementation,
    partials: Tensor,
    logits: Tensor | None,
    hidden: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    rows: Tensor,
    row_sequence: Tensor,
    row_position: Tensor,
    temperature: Tensor,
    seeds: Tensor,
    step: Tensor,
    forbidden_ids: Tensor | None,
    guidance_logits: Tensor | None,
    guidance_rows: Tensor | None,
    *options: int | float | bool,
) -> tuple[Tensor, ...]:
    """See `mdlm_fast.ops.finish_scores`. `finish` reads logits; from hidden states they are formed again."""
    per_call = (temperature, seeds, step, forbidden_ids)
    if logits is not None:
        per_row = (rows, row_sequence, row_position)
        return finish(partials, logits, None, None, None, *per_row, *per_call, guidance_logits, guidance_rows, *options)
    assert hidden is not None and weight is not None

    def run(group: slice, again: Tensor, numbers: Tensor, *guidance: Tensor | None) -> tuple[Tensor, ...]:
        per_row = (numbers, row_sequence[group], row_position[group])
        return finish(partials[group], again, None, None, None, *per_row, *per_call, *guidance, *options)

    return on_logits(run, hidden, weight, bias, rows, guidance_logits, guidance_rows)


@torch.no_grad()
def linear_token_logprobs(
    score_partials: Implementation,
    merge_logprobs: Implementation,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    targets: Tensor,
    temperature: Tensor,
    forbidden_ids: Tensor | None,
    vocab_limit: int,
    need_entropy: bool,
) -> tuple[Tensor, ...]:
    """See `mdlm_fast.ops.linear_token_logprobs`.

    `merge_logprobs(partials, target_logits, rows, temperature, need_entropy)` makes the op's outputs from the tempered
    statistics of all tiles and the logits f32 [N] at the targets, -inf where they are not allowed.
    """
    x, numbers = gather(hidden, rows), numbered(rows)
    sequence = numbers.clamp(min=0) if temperature.numel() > 1 else torch.zeros_like(numbers)
    allowed = (rows >= 0) & (targets < vocab_limit)
    if forbidden_ids is not None:
        allowed &= torch.isin(targets, forbidden_ids, invert=True)
    target_logits = torch.full(rows.shape, -torch.inf, dtype=torch.float32, device=rows.device)
    options = (vocab_limit, False, True, STAT_BITS["entropy"] if need_entropy else 0)
    partials = []
    for chunk in vocabulary_chunks(weight, rows.numel()):
        logits = F.linear(x, weight[chunk], None if bias is None else bias[chunk])
        partials.append(
            score_partials(
                logits, numbers, sequence, temperature, forbidden_ids, None, None, 0.0, chunk.start, *options
            )
        )
        here = allowed & (targets >= chunk.start) & (targets < chunk.stop)
        column = (targets - chunk.start).clamp(0, logits.shape[1] - 1)
        target_logits = torch.where(here, logits.gather(1, column[:, None])[:, 0].float(), target_logits)
        del logits  # before the next chunk is computed: one scratch at a time
    return merge_logprobs(torch.cat(partials, 1), target_logits, rows, temperature, need_entropy)


@torch.no_grad()
def linear_token_logprobs_backward(
    logit_gradient_: Implementation,
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
    *,
    linear: Implementation = F.linear,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `mdlm_fast.ops.reference.token_logprobs`.

    `linear` must give the logits of the forward pass to the bit: one rounded otherwise puts a confident row off by as
    much as its gradient.
    `logit_gradient_(logits, grad_logp, grad_entropy, targets, temperature, forbidden_ids, vocab_start, vocab_limit,
    entropy, lse, rows)` overwrites logits [N, columns], whose column 0 has id vocab_start, with dL/dlogits; row i is
    that of score i, and zero where rows[i] is -1.
    """
    width, numbers = weight.shape[0], numbered(rows)
    x = gather(hidden, rows).masked_fill_((rows < 0)[:, None], 0.0)  # [N, H]; 0 * NaN of a padding row would spread
    grad_x = torch.zeros(x.shape if need_hidden else (0,), dtype=torch.float32, device=x.device)
    grad_weight = torch.empty(weight.shape if need_weight else (0,), dtype=weight.dtype, device=x.device)
    grad_bias = torch.empty(width if need_bias else 0, dtype=weight.dtype, device=x.device)
    upstream, sums = (grad_logp, grad_entropy), (entropy, lse)
    for chunk in vocabulary_chunks(weight, rows.numel()):
        grad_z = linear(x, weight[chunk], None if bias is None else bias[chunk])  # logits, until the next line
        logit_gradient_(
            grad_z, *upstream, targets, temperature, forbidden_ids, chunk.start, vocab_limit, *sums, numbers
        )
        if need_hidden:
            grad_x += fp32_product(grad_z, weight[chunk])
        if need_weight:
            write_product(grad_z.t(), x, grad_weight[chunk])
        if need_bias:
            torch.sum(grad_z, 0, out=grad_bias[chunk])
        del grad_z
    return (sum_by_row(grad_x, rows, hidden) if need_hidden else grad_x.to(hidden.dtype)), grad_weight, grad_bias


def on_logits(
    run: Callable[..., tuple[Tensor, ...]],
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    guidance_hidden: Tensor | None,
    guidance_rows: Tensor | None,
) -> tuple[Tensor, ...]:
    """The outputs of run(group, logits, numbers, guidance_logits, guidance_numbers) for all groups of rows.

    logits: [n, V] of a group; numbers: int32 [n], its rows within them, -1 = padding; the guidance is None without any.
    Passed on rather than handed out, so that one group's logits are gone before the next one's are formed.
    """
    outputs = []
    row_bytes = weight.shape[0] * weight.element_size() * (1 if guidance_hidden is None else 2)
    for group in row_groups(rows.numel(), row_bytes):
        numbers = numbered(rows[group])
        guidance, guidance_numbers = None, None
        if guidance_hidden is not None and guidance_rows is not None:
            guidance = F.linear(gather(guidance_hidden, guidance_rows[group]), weight, bias)
            guidance_numbers = numbers
        logits = F.linear(gather(hidden, rows[group]), weight, bias)
        outputs.append(run(group, logits, numbers, guidance, guidance_numbers))
        del logits, guidance
    return joined(outputs)


def row_groups(count: int, row_bytes: int) -> Iterator[slice]:
    """Slices of `count` rows whose logits fit the scratch; one empty slice where there are no rows."""
    size = max(1, SCRATCH_BYTES // row_bytes)
    return (slice(first, min(first + size, count)) for first in range(0, max(count, 1), size))


def vocabulary_chunks(weight: Tensor, count: int) -> Iterator[slice]:
    """Slices of whole tiles whose logits of `count` rows fit the scratch; at least a tile."""
    width = weight.shape[0]
    size = max(SCRATCH_BYTES // (max(count, 1) * weight.element_size()) // TILE, 1) * TILE
    return (slice(first, min(first + size, width)) for first in range(0, width, size))


def numbered(rows: Tensor) -> Tensor:
    """`rows` (int32 [n]) once gathered: 0, 1, ..., with -1 where there was padding."""
    return torch.where(rows < 0, rows, torch.arange(rows.numel(), dtype=torch.int32, device=rows.device))


def gather(hidden: Tensor, rows: Tensor) -> Tensor:
    """Rows [n, H] of hidden [N, H] or [B, L, H] by flat index; padding takes row 0."""
    rows = rows.clamp(min=0)
    if hidden.dim() == 3 and hidden.stride(0) == hidden.shape[1] * hidden.stride(1):
        hidden = hidden.flatten(0, 1)  # a view
    if hidden.dim() == 2:
        return hidden.index_select(0, rows)
    return hidden[torch.div(rows, hidden.shape[1], rounding_mode="floor"), rows % hidden.shape[1]]


def joined(groups: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The outputs of all groups of rows, one after the other."""
    return groups[0] if len(groups) == 1 else tuple(torch.cat(parts) for parts in zip(*groups, strict=True))


def fp32_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, accumulated and returned in fp32."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def write_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """a @ b, accumulated in fp32 and rounded once to the dtype of `out`."""
    if a.is_cuda:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a.float() @ b.float())


def sum_by_row(grad: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """Gradient of `like` ([N, H] or [B, L, H]) from fp32 [n, H], one per score; rows named twice add up, in order.

    Sorted and reduced a segment at a time: additions by atomics would come in another order in every run.
    """
    count, width = like.shape[:-1].numel(), like.shape[-1]
    if rows.numel() == 0 or like.numel() == 0:
        return torch.zeros(like.shape, dtype=like.dtype, device=like.device)
    ordered, order = torch.sort(rows, stable=True)
    # Padding sorts first: the segment of row 0 begins behind it.
    offsets = torch.searchsorted(ordered, torch.arange(count + 1, dtype=rows.dtype, device=rows.device))
    total = torch.segment_reduce(grad.index_select(0, order), "sum", offsets=offsets, axis=0, unsafe=True, initial=0.0)
    assert total.shape == (count, width)
    return total.to(like.dtype).view(like.shape)


#: Op -> how it is put together, and the functions of a backend that it takes first.
PARTS: dict[str, tuple[Implementation, tuple[str, ...]]] = {
    "finish_scores": (finish_scores, ("finish_scores",)),
    "linear_score_rows": (linear_score_rows, ("score_rows",)),
    "linear_token_logprobs": (linear_token_logprobs, ("score_partials", "merge_logprobs")),
    "linear_token_logprobs_backward": (linear_token_logprobs_backward, ("logit_gradient_",)),
}
