"""What every kernel over rows of logits shares: where a row lies, and the codes of rows that cannot be scored.

Rows are those of a tensor [N, V] or [B, L, V] of any row strides, named by their index in the flattened leading
dimensions: flat row r is row r % L of batch r // L. Columns have stride 1.
"""

import triton
import triton.language as tl
from torch import Tensor

TILE: tl.constexpr = tl.constexpr(2048)  # columns of a canonical tile of the global vocabulary
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)

# What a token below 0 means: padding, NaN or +inf in the row, no candidate left.
PADDING_ROW: tl.constexpr = tl.constexpr(-1)
NAN_ROW: tl.constexpr = tl.constexpr(-2)
INF_ROW: tl.constexpr = tl.constexpr(-3)
EMPTY_ROW: tl.constexpr = tl.constexpr(-4)


@triton.jit
def row_offset(row, rows_per_batch, batch_stride, row_stride):
    """Elements before flat row `row` (an integer block): int64, since rows * V passes 2**31."""
    row = row.to(tl.int64)
    batch = row // rows_per_batch
    return batch * batch_stride + (row - batch * rows_per_batch) * row_stride


def row_layout(tensor: Tensor) -> tuple[int, int, int]:
    """(rows_per_batch, batch_stride, row_stride) of [N, V] or [B, L, V], strides in elements.

    Raises:
        ValueError: the last dimension does not have stride 1.
    """
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"the last dimension must have stride 1, got strides {tensor.stride()}")
    batch_stride = tensor.stride(0) if tensor.dim() == 3 else 0
    return max(tensor.shape[-2], 1), batch_stride, tensor.stride(-2)
