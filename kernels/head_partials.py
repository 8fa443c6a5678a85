"""`score_partials` of an LM head's logits, from the statistics of their parts (see `head_gemm`)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdlm_fast.kernels.head_gemm import PART, PART_FIELDS, PARTS, load_temperature_scale, multiply
from mdlm_fast.kernels.row_logits import NEG_INF, forbidden_argument
from mdlm_fast.kernels.rows import LOG2_E, TILE
from mdlm_fast.kernels.tile import TileStatistics, merge_statistics

TILE_FIELDS: tl.constexpr = tl.constexpr(8)
MERGED_ROWS = 128  # a program of the second kernel


@triton.jit(do_not_specialize=["num_rows"])
def merge_parts_kernel(
    parts,  # f32 [parts, 6, C]
    num_parts,
    rows,  # int32 [C], -1 = padding
    num_rows,
    row_sequence,  # int32 [C] or None
    temperature,  # f32 [B]; without row_sequence [C] or [1]
    temperature_stride,
    partials,  # f32 [C, tiles, 8], written
    MOMENT_TEMPERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0)
    score = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = score < num_rows
    live = tl.load(rows + score, mask=inside, other=-1) >= 0
    scale = load_temperature_scale(temperature, temperature_stride, row_sequence, score, live)
    top = tl.full((BLOCK,), NEG_INF, tl.float32)
    top_id = tl.full((BLOCK,), -1, tl.int32)
    second = top
    rest = tl.zeros((BLOCK,), tl.float32)
    mass = rest
    moment = rest
    record = parts + tile.to(tl.int64) * PARTS * PART_FIELDS * num_rows + score
    for _ in range(tl.minimum(PARTS, num_parts - tile * PARTS)):
        later = TileStatistics(
            tl.load(record, mask=live, other=NEG_INF),
            tl.load(record + num_rows, mask=live, other=0.0).to(tl.int32, bitcast=True),
            tl.load(record + 2 * num_rows, mask=live, other=NEG_INF),
            tl.load(record + 3 * num_rows, mask=live, other=0.0),
            tl.load(record + 4 * num_rows, mask=live, other=0.0),
            tl.load(record + 5 * num_rows, mask=live, other=0.0),
        )
        earlier = TileStatistics(top, top_id, second, rest, mass, moment)
        merged = merge_statistics(earlier, later, LOG2_E, scale, MOMENT_TEMPERED)
        top, top_id, second = merged.top, merged.column, merged.second
        rest, mass, moment = merged.rest, merged.mass, merged.moment
        record += PART_FIELDS * num_rows
    record = partials + (score.to(tl.int64) * tl.num_programs(0) + tile) * TILE_FIELDS
    id_bits = top_id.to(tl.float32, bitcast=True)
    tl.store(record, top, mask=inside)
    tl.store(record + 1, id_bits, mask=inside)
    tl.store(record + 2, top, mask=inside)
    tl.store(record + 3, id_bits, mask=inside)
    tl.store(record + 4, second, mask=inside)
    tl.store(record + 5, rest, mask=inside)
    tl.store(record + 6, mass, mask=inside)
    tl.store(record + 7, moment, mask=inside)


def head_partials(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    row_sequence: Tensor | None,
    temperature: Tensor,
    forbidden_ids: Tensor | None,
    vocab_limit: int,
    moment_tempered: bool,
    targets: Tensor | None = None,
    logits: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(the score_partials of F.linear(hidden[rows], weight, bias), the logits at `targets`).

    Args:
        hidden: bf16 or f16 [N, H] or [B, L, H], last stride 1; weight: [V, H], any strides; bias: [V], contiguous.
        rows: int32 [C], -1 = padding.
        row_sequence: int32 [C], indices into temperature; None: temperature has [1] or [C].
        targets: int64 [C]; with them, fields 4 and 5 (runner-up and sum at temperature 1) mean nothing.
        logits: [C, V], last stride 1, written if given, but for padding.

    Returns:
        (f32 [C, tiles, 8], f32 [C] or None: -inf where the target is not allowed). The candidates are the normaliser.
    """
    count, width = rows.numel(), weight.shape[0]
    num_parts, tiles = triton.cdiv(width, PART.value), triton.cdiv(width, TILE.value)
    parts = torch.empty((num_parts, PART_FIELDS.value, count), dtype=torch.float32, device=hidden.device)
    partials = torch.empty((count, tiles, TILE_FIELDS.value), dtype=torch.float32, device=hidden.device)
    target_logits = None
    if targets is not None:
        target_logits = torch.full((count,), float("-inf"), dtype=torch.float32, device=hidden.device)
    if not count:
        return partials, target_logits
    per_row = (row_sequence, temperature, 1 if row_sequence is None and temperature.numel() > 1 else 0)
    forbidden = (*forbidden_argument(forbidden_ids, 0, width), min(vocab_limit, width))
    multiply(hidden, weight, bias, rows, logits, *per_row, *forbidden, targets, target_logits, parts, moment_tempered)
    merge_parts_kernel[(tiles, triton.cdiv(count, MERGED_ROWS))](
        parts,
        num_parts,
        rows,
        count,
        *per_row,
        partials,
        MOMENT_TEMPERED=moment_tempered,
        BLOCK=MERGED_ROWS,
        num_warps=4,
    )
    return partials, target_logits
