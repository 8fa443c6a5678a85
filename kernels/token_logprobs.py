"""`token_logprobs` in Triton and its gradient.

Forward: the statistics of tiles with tempered exponents, as for scoring, the logits of the targets, and one merge.
Backward: one program a tile of each row of the tensor. Rows that no score names are written as zeros without being
read; where several scores name a row, their gradients add up in fp32 in the order of the scores.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdlm_fast.kernels.logit_gradient import (
    GRADIENT_WARPS,
    SCORES,
    add_gradient,
    merge_logprobs,
    score_terms,
    stride_of,
    targets_allowed,
    tile_logits,
)
from mdlm_fast.kernels.row_logits import Candidates, RowLogits, forbidden_argument
from mdlm_fast.kernels.rows import TILE, row_layout, row_offset
from mdlm_fast.kernels.score_partials import ENTROPY, score_partials


@triton.jit(do_not_specialize=["count", "num_forbidden", "vocab_limit"])
def target_logits_kernel(
    logits,  # [N, V] or [B, L, V]
    rows_per_batch,
    batch_stride,
    row_stride,
    rows,  # int32 [C], -1 = padding
    targets,  # int64 [C]
    forbidden_ids,  # int64 [num_forbidden] or None
    num_forbidden,
    vocab_limit,
    out,  # f32 [C], written
    count,
    IDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    score = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + score, mask=score < count, other=-1)
    target = tl.load(targets + score, mask=row >= 0, other=0)
    allowed = (row >= 0) & targets_allowed(target, forbidden_ids, num_forbidden, vocab_limit, IDS)
    at = row_offset(row, rows_per_batch, batch_stride, row_stride) + target
    # -inf in fp32: `other` in the dtype of the logits would be rounded.
    z = tl.where(allowed, tl.load(logits + at, mask=allowed, other=0.0).to(tl.float32), float("-inf"))
    tl.store(out + score, z, mask=score < count)


def token_logprobs(
    logits: Tensor,
    rows: Tensor,
    targets: Tensor,
    temperature: Tensor,
    forbidden_ids: Tensor | None,
    vocab_limit: int,
    need_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `mdlm_fast.ops.token_logprobs`: (logp f32 [C], entropy f32 [C] or [0], lse f64 [C])."""
    count = rows.shape[0]
    target_logits = torch.empty(count, dtype=torch.float32, device=logits.device)
    if count:
        target_logits_kernel[(triton.cdiv(count, SCORES),)](
            logits,
            *row_layout(logits),
            rows,
            targets,
            forbidden_ids,
            0 if forbidden_ids is None else forbidden_ids.shape[0],
            vocab_limit,
            target_logits,
            count,
            IDS=32,
            BLOCK=SCORES,
        )
    # Each score has a temperature of its own, or all have one.
    temperature_index = torch.arange(count, dtype=torch.int32, device=logits.device) * stride_of(temperature)
    partials = score_partials(
        logits,
        rows,
        temperature_index,
        temperature,
        forbidden_ids,
        None,
        None,
        0.0,
        vocab_start=0,
        vocab_limit=vocab_limit,
        normalize_all=False,
        stats_tempered=True,
        stats=ENTROPY if need_entropy else 0,
        tempered=True,
    )
    return merge_logprobs(partials, target_logits, rows, temperature, need_entropy)


@triton.jit(do_not_specialize=["count", "num_forbidden"])
def gradient_kernel(
    logits,  # [N, V] or [B, L, V]
    rows_per_batch,
    batch_stride,
    row_stride,
    width,
    forbidden,  # int64 [num_forbidden] or uint8 [V] or None
    num_forbidden,
    limit,  # columns from here on are no candidates
    sorted_rows,  # int32 [C], ascending
    order,  # int64 [C], the score of each; ascending where rows are equal
    first_place,  # int32 [N], where sorted_rows first names a row; C if it does not
    targets,  # int64 [C]
    terms,  # f32 [C, 8]
    out,  # [N, V], contiguous
    count,
    ENTROPY: tl.constexpr,
):
    tiles = tl.cdiv(width, TILE)
    row_index = tl.program_id(0) // tiles
    first = (tl.program_id(0) - row_index * tiles) * TILE
    column = first + tl.arange(0, TILE)
    gradient = tl.zeros((TILE,), tl.float32)
    place = tl.load(first_place + row_index)
    named = place < count
    if named:
        named = tl.load(sorted_rows + place) == row_index
    if named:
        row = logits + row_offset(row_index, rows_per_batch, batch_stride, row_stride)
        column, z = tile_logits(
            RowLogits(row, None, 1.0, 0.0, width), Candidates(forbidden, num_forbidden, 0, limit), first, True
        )
        while named:
            score = tl.load(order + place)
            target = tl.load(targets + score).to(tl.int32)
            gradient = add_gradient(gradient, z, column, target, terms + score * 8, ENTROPY)
            place += 1
            named = place < count
            if named:
                named = tl.load(sorted_rows + place) == row_index
    gradient = gradient.to(out.dtype.element_ty)
    tl.store(out + row_index.to(tl.int64) * width + column, gradient, mask=column < width)


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
    """See `mdlm_fast.ops.token_logprobs`: dL/dlogits in the dtype and shape of the logits, contiguous."""
    width = logits.shape[-1]
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if not out.numel():
        return out
    count, num_rows = rows.shape[0], logits.shape[:-1].numel()
    terms = score_terms(grad_logp, grad_entropy, targets, temperature, forbidden_ids, vocab_limit, entropy, lse)
    sorted_rows, order = rows.sort(stable=True)
    every_row = torch.arange(num_rows, dtype=torch.int32, device=rows.device)
    forbidden, num_forbidden = forbidden_argument(forbidden_ids, 0, width)
    gradient_kernel[(num_rows * triton.cdiv(width, TILE.value),)](
        logits,
        *row_layout(logits),
        width,
        forbidden,
        num_forbidden,
        min(vocab_limit, width),
        sorted_rows,
        order,
        torch.searchsorted(sorted_rows, every_row, out_int32=True),
        targets,
        terms,
        out,
        count,
        ENTROPY=grad_entropy is not None,
        num_warps=GRADIENT_WARPS,
    )
    return out
