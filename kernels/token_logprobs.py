"""`token_logprobs` in Triton and its gradient.

Forward: the statistics of tiles, as for scoring but with one set of exponents, the tempered ones; then a merge.
Backward: one program a tile of each row of the tensor. Rows that no score names are written as zeros without being
read; where several scores name a row, their gradients add up in fp32 in the order of the scores.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdlm_fast.kernels.logit_gradient import (
    FIELDS,
    GRADIENT_WARPS,
    add_gradient,
    merge_logprobs,
    score_terms,
    stride_of,
    tile_logits,
)
from mdlm_fast.kernels.row_logits import (
    Candidates,
    RowLogits,
    excludes_any,
    forbidden_argument,
    forbidden_columns,
    read_set,
    reads_vectors,
)
from mdlm_fast.kernels.rows import TILE, row_layout, row_offset
from mdlm_fast.kernels.score_partials import tiles_per_program
from mdlm_fast.kernels.tile import exponent_scale, tile_statistics


@triton.jit(do_not_specialize=["num_forbidden", "limit", "tiles_per_program"])
def statistics_kernel(
    logits,  # [N, V] or [B, L, V]
    rows_per_batch,
    batch_stride,
    row_stride,
    width,
    rows,  # int32 [C], -1 = padding
    targets,  # int64 [C]
    temperature,  # f32 [1] or [C]
    temperature_stride,  # 0 for [1], 1 for [C]
    forbidden,  # int64 [num_forbidden] or uint8 [V] or None
    num_forbidden,
    limit,  # columns from here on are no candidates
    partials,  # f32 [C, tiles, 8], of which 0, 6 and 7 are written; nothing for padding
    target_logits,  # f32 [C], written: z at the target, -inf if it is no candidate
    tiles,
    tiles_per_program,
    MOMENT: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """A program a run of tiles of one score's row; one warp, see `tile`."""
    runs = tl.cdiv(tiles, tiles_per_program)
    score = tl.program_id(0) // runs
    first_tile = (tl.program_id(0) - score * runs) * tiles_per_program
    row_index = tl.load(rows + score)
    if row_index >= 0:
        row = logits + row_offset(row_index, rows_per_batch, batch_stride, row_stride)
        source = RowLogits(row, None, 1.0, 0.0, width)
        candidates = Candidates(forbidden, num_forbidden, 0, limit)
        listed = forbidden_columns(candidates)
        scale = exponent_scale(tl.load(temperature + score * temperature_stride))
        if first_tile == 0:
            one = tl.arange(0, 1)
            target = tl.load(targets + score).to(tl.int32)
            tl.store(target_logits + score + one, read_set(source, candidates, target, one, 0, None, 1, False, True))
        for tile in range(first_tile, tl.minimum(first_tile + tiles_per_program, tiles)):
            first = tile * TILE
            excluded = excludes_any(first, candidates, listed)
            s = tile_statistics(
                source, candidates, first, None, excluded, scale, scale, 0, False, False, MOMENT, True, ALIGNED
            )
            record = partials + (score.to(tl.int64) * tiles + tile) * FIELDS
            tl.store(record, s.top)
            tl.store(record + 6, s.mass)
            tl.store(record + 7, s.moment)


def token_logprobs(
    logits: Tensor,
    rows: Tensor,
    targets: Tensor,
    temperature: Tensor,
    forbidden_ids: Tensor | None,
    vocab_limit: int,
    need_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `mdlm_fast.ops.token_logprobs`: (logp f32 [C], entropy f32 [C] or [0], lse f64 [C]). Two launches."""
    count, width = rows.shape[0], logits.shape[-1]
    tiles = triton.cdiv(width, TILE.value)
    partials = torch.empty((count, tiles, FIELDS.value), dtype=torch.float32, device=logits.device)
    target_logits = torch.empty(count, dtype=torch.float32, device=logits.device)
    if count:
        forbidden, num_forbidden = forbidden_argument(forbidden_ids, 0, width)
        run = tiles_per_program(count, tiles, logits.device)
        statistics_kernel[(count * triton.cdiv(tiles, run),)](
            logits,
            *row_layout(logits),
            width,
            rows,
            targets,
            temperature,
            stride_of(temperature),
            forbidden,
            num_forbidden,
            min(vocab_limit, width),
            partials,
            target_logits,
            tiles,
            run,
            MOMENT=need_entropy,
            ALIGNED=reads_vectors(logits),
            num_warps=1,
        )
    return merge_logprobs(partials, target_logits, rows, temperature, need_entropy)


@triton.jit(do_not_specialize=["num_forbidden"])
def gradient_kernel(
    logits,  # [N, V] or [B, L, V]
    rows_per_batch,
    batch_stride,
    row_stride,
    width,
    forbidden,  # int64 [num_forbidden] or uint8 [V] or None
    num_forbidden,
    limit,  # columns from here on are no candidates
    begin,  # int32 [N + 1]: row i is named by the scores from begin[i] up to begin[i + 1]
    terms,  # f32 [C, 8], of the scores ordered by row
    out,  # [N, V], contiguous
    ENTROPY: tl.constexpr,
):
    tiles = (width + TILE - 1) // TILE
    row_index = tl.program_id(0) // tiles
    first = (tl.program_id(0) - row_index * tiles) * TILE
    score = tl.load(begin + row_index)
    end = tl.load(begin + row_index + 1)
    gradient = tl.full((TILE,), 0.0, tl.float32)
    while score < end:
        # Read again for a second score, from cache: to hold the logits as well would cost a third of all registers.
        row = logits + row_offset(row_index, rows_per_batch, batch_stride, row_stride)
        candidates = Candidates(forbidden, num_forbidden, 0, limit)
        z = tile_logits(RowLogits(row, None, 1.0, 0.0, width), candidates, first, True)
        gradient = add_gradient(gradient, z, first, terms + score * FIELDS, ENTROPY)
        score += 1
    column = first + tl.arange(0, TILE)
    tl.store(out + row_index.to(tl.int64) * width + column, gradient.to(out.dtype.element_ty), mask=column < width)


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
    num_rows = logits.shape[:-1].numel()
    sorted_rows, order = rows.sort(stable=True)
    terms = score_terms(grad_logp, grad_entropy, targets, temperature, forbidden_ids, vocab_limit, entropy, lse, order)
    bounds = torch.arange(num_rows + 1, dtype=torch.int32, device=rows.device)
    forbidden, num_forbidden = forbidden_argument(forbidden_ids, 0, width)
    gradient_kernel[(num_rows * triton.cdiv(width, TILE.value),)](
        logits,
        *row_layout(logits),
        width,
        forbidden,
        num_forbidden,
        min(vocab_limit, width),
        torch.searchsorted(sorted_rows, bounds, out_int32=True),
        terms,
        out,
        ENTROPY=grad_entropy is not None,
        num_warps=GRADIENT_WARPS,
    )
    return out
