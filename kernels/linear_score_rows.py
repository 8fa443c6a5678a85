"""`linear_score_rows` without logits in memory: the head's statistics (see `head_gemm`), then what they say of rows.

Greedy rows need nothing else. Sampled ones are read again where they are drawn from, so their logits are kept. What
looks at logits more than once (top-k, top-p, a normaliser over all ids), guidance and fp32 are better served by a
library's GEMM.
"""

import torch
from torch import Tensor

from mdlm_fast.kernels.finish_scores import Outputs, finish_scores
from mdlm_fast.kernels.head_partials import head_partials


def linear_score_rows(
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
    vocab_limit: int,
    top_k: int,
    top_p: float,
    sample: bool,
    normalize_all: bool,
    stats_tempered: bool,
    stats: int,
) -> Outputs:
    """See `mdlm_fast.ops.linear_score_rows`. For bf16 and f16 without guidance, filters and normalize_all."""
    width = weight.shape[0]
    numbers, logits = rows, None
    if sample:
        stride = -(-width // 16) * 16  # aligned rows
        logits = hidden.new_empty((rows.numel(), stride))[:, :width]
        numbers = torch.where(rows < 0, rows, torch.arange(rows.numel(), dtype=torch.int32, device=rows.device))
    partials, _ = head_partials(
        hidden, weight, bias, rows, row_sequence, temperature, forbidden_ids, vocab_limit, stats_tempered, logits=logits
    )
    return finish_scores(
        partials,
        logits,
        hidden,
        weight,
        bias,
        numbers,
        row_sequence,
        row_position,
        temperature,
        seeds,
        step,
        forbidden_ids,
        None,
        None,
        0.0,
        vocab_limit,
        top_k,
        top_p,
        sample,
        normalize_all,
        stats_tempered,
        stats,
    )
