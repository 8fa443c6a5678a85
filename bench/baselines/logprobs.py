"""Log-probabilities of given tokens as published trainers compute them, in plain PyTorch.

All are differentiable by autograd and give log softmax(logits)[target] of every row, in the dtype that the trainer they
follow leaves it in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

#: Positions of a sequence in `selective_log_softmax`, rows at a time in `entropy_of_chunks`: TRL's chunk.
TRL_ROWS = 128


def log_softmax_gather(logits: Tensor, targets: Tensor) -> Tensor:
    """Dense: the log-softmax of everything in the dtype of the logits, then one element a row.

    This is how the trainers of d1 (arXiv:2504.12216) and CJ-GRPO (arXiv:2509.23924) do it: logits in bfloat16 give
    log-probs in bfloat16.

    Args:
        logits: floating [N, V].
        targets: int64 [N].

    Returns:
        [N], dtype of logits.
    """
    return logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


def log_softmax_gather_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`log_softmax_gather` and the entropy of every row from the same dense log-softmax: [N] each, dtype of logits."""
    logp = logits.log_softmax(-1)  # [N, V]
    return logp.gather(-1, targets[:, None]).squeeze(-1), -(logp.exp() * logp).sum(-1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-`F.cross_entropy` in float32, for torch.compile, which fuses the cast into its passes. The fastest of the forms
    we tried, with its gradient.

    Args:
        logits: floating [N, V].
        targets: int64 [N].

    Returns:
        float32 [N].
    """
    return -F.cross_entropy(logits.float(), targets, reduction="none")


def selective_log_softmax(logits: Tensor, targets: Tensor) -> Tensor:
    """A sequence at a time, so that one sequence's temporaries live at once: the plain PyTorch path of TRL's GRPO.

    In float32 the target's logit minus a log-sum-exp. That difference is not stable in 16 bits, so there each sequence
    takes a dense log-softmax, in its dtype.

    Args:
        logits: floating [N, V], taken as sequences of `TRL_ROWS` positions (the last may be shorter).
        targets: int64 [N].

    Returns:
        [N], dtype of logits.
    """
    if logits.dtype in (torch.float32, torch.float64):
        chosen = logits.gather(-1, targets[:, None]).squeeze(-1)
        return chosen - torch.cat([sequence.logsumexp(-1) for sequence in logits.split(TRL_ROWS)])
    sequences = zip(logits.split(TRL_ROWS), targets.split(TRL_ROWS), strict=True)  # [128, V], [128]
    return torch.cat([log_softmax_gather(*sequence) for sequence in sequences])


def selective_log_softmax_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`selective_log_softmax`, and the entropy from a second log-softmax of `TRL_ROWS` rows at a time: [N] each."""
    entropies = []
    for chunk in logits.split(TRL_ROWS):
        logp = chunk.log_softmax(-1)  # [128, V]
        entropies.append(-(logp.exp() * logp).sum(-1))
    return selective_log_softmax(logits, targets), torch.cat(entropies)


def chunked_linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, rows: int = 128) -> Tensor:
    """LM head and log-probs of some rows at a time; the backward pass computes their logits again.

    In the style of Liger's fused linear cross-entropy (arXiv:2410.10989), which also goes through chunks of rows, of
    torchtune's chunked loss, whose chunk of rows is cast to float32, and of Cut Cross-Entropy (arXiv:2411.09009), which
    recomputes. Liger avoids the recomputation by forming gradients in its forward pass, which needs their upstream
    gradient there; the ratio of a policy-gradient loss makes it known only afterwards.

    Args:
        hidden: floating [N, H].
        weight: same dtype [V, H].
        targets: int64 [N].
        rows: whose logits are held at a time.

    Returns:
        float32 [N].
    """
    chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
    parts = [
        checkpoint(linear_cross_entropy, part, weight, target, use_reentrant=False, preserve_rng_state=False)
        for part, target in chunks
    ]
    return -torch.cat(parts)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(hidden @ weight.T)[target] in float32: [n] from hidden [n, H], weight [V, H], targets int64 [n]."""
    return -cross_entropy(F.linear(hidden, weight), targets)
