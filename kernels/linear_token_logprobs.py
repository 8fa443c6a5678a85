"""`linear_token_logprobs` without logits in memory: the head's tempered statistics and the logits at the targets."""

import torch
from torch import Tensor

from mdlm_fast.kernels.head_partials import head_partials, row_groups
from mdlm_fast.kernels.logit_gradient import merge_logprobs


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
) -> tuple[Tensor, ...]:
    """See `mdlm_fast.ops.linear_token_logprobs`. For bf16 and f16; fp32 is better served by a library's GEMM."""
    groups = []
    for group in row_groups(rows.numel()):
        t = temperature[group] if temperature.numel() > 1 else temperature
        partials, target_logits = head_partials(
            hidden, weight, bias, rows[group], None, t, forbidden_ids, vocab_limit, True, targets[group]
        )
        assert target_logits is not None
        groups.append(merge_logprobs(partials, target_logits, rows[group], t, need_entropy))
    return groups[0] if len(groups) == 1 else tuple(torch.cat(parts) for parts in zip(*groups, strict=True))
