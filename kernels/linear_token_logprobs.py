"""`linear_token_logprobs` without logits in memory: the head's tempered statistics and the logits at the targets."""

from torch import Tensor

from mdlm_fast.kernels.head_partials import head_partials
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
    partials, target_logits = head_partials(
        hidden, weight, bias, rows, None, temperature, forbidden_ids, vocab_limit, True, targets
    )
    assert target_logits is not None
    return merge_logprobs(partials, target_logits, rows, temperature, need_entropy)
