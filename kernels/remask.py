"""`remask_` in Triton: committed positions become masks again, least sure first. One program per sequence."""

import triton
import triton.language as tl
from torch import Tensor

from mdlm_fast.kernels.rank import NO_CANDIDATE, highest, ranking_key
from mdlm_fast.kernels.select_commit import as_bytes, sequence_block, write_mask_count


@triton.jit(do_not_specialize=["mask_id"])
def remask_kernel(
    canvas,  # int64 [B, L]
    masked,  # uint8 [B, L], 0 or 1
    running,  # f32 [B, L]
    scope,  # uint8 [B, L], 0 or 1
    count,  # int32 [B]
    commit_step,  # int16 [B, L] or None
    masks_left,  # int32 [B] or None
    done,  # uint8 [B] or None
    length,
    mask_id,
    BLOCK: tl.constexpr,
):
    sequence = tl.program_id(0)
    position = tl.arange(0, BLOCK)
    inside = position < length
    at = sequence.to(tl.int64) * length + position  # int64 [BLOCK]
    is_mask = tl.load(masked + at, mask=inside, other=0) != 0
    in_scope = tl.load(scope + at, mask=inside, other=0) != 0
    # The least sure goes first, so the ranking is reversed; no reversed key is NO_CANDIDATE either.
    keys = ~ranking_key(tl.load(running + at, mask=inside, other=0.0))
    chosen = highest(tl.where(in_scope & ~is_mask, keys, NO_CANDIDATE), tl.load(count + sequence), LAST_FIRST=True)
    tl.store(canvas + at, tl.full(at.shape, mask_id, tl.int64), mask=chosen)
    tl.store(masked + at, tl.full(at.shape, 1, tl.uint8), mask=chosen)
    if commit_step is not None:
        tl.store(commit_step + at, tl.full(at.shape, -1, tl.int16), mask=chosen)
    write_mask_count(is_mask | chosen, sequence, masks_left, done)


def remask_(
    canvas: Tensor,
    masked: Tensor,
    running: Tensor,
    scope: Tensor,
    count: Tensor,
    mask_id: int,
    commit_step: Tensor | None,
    masks_left: Tensor | None,
    done: Tensor | None,
) -> None:
    """See `mdlm_fast.ops.remask_`. One launch."""
    sequences, length = canvas.shape
    if sequences == 0:
        return
    block, warps = sequence_block(length)
    remask_kernel[(sequences,)](
        canvas,
        as_bytes(masked),
        running,
        as_bytes(scope),
        count,
        commit_step,
        masks_left,
        as_bytes(done),
        length,
        mask_id,
        BLOCK=block,
        num_warps=warps,
    )
