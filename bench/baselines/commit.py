"""How published decoders choose positions and write them: the part of a step behind scoring.

All take the canvas int64 [B, L], `masked` bool [B, L] as it was when the step began, tokens int64 [B, L] and confidence
[B, L] of every position, and write the canvas alone. That each step also compares the canvas with the mask id is left
out, in their favour.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .dinfer import SLACK
from .fast_dllm import above
from .llada import commit_best
from .score import compiled

#: Writes the canvas from canvas, masked, tokens, confidence and a bound of each sequence [B]: its quota, int32, or its
#: threshold, a probability.
Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]


def llada(canvas: Tensor, masked: Tensor, tokens: Tensor, confidence: Tensor, quota: Tensor) -> None:
    """LLaDA (arXiv 2502.09992): a top-k a sequence, then one write through a mask."""
    tokens = torch.where(masked, tokens, canvas)
    commit_best(canvas, tokens, torch.where(masked, confidence, -torch.inf), quota)


def eoser_rollout(canvas: Tensor, masked: Tensor, tokens: Tensor, confidence: Tensor, quota: Tensor) -> None:
    """The rollout of CJ-GRPO's trainers (arXiv 2509.23924): a top-k and a write through indices a sequence."""
    tokens = torch.where(masked, tokens, canvas)
    confidence = torch.where(masked, confidence, -torch.inf)
    for row in range(len(canvas)):
        best = confidence[row].topk(int(quota[row].item())).indices
        canvas[row, best] = tokens[row, best]


def fast_dllm(canvas: Tensor, masked: Tensor, tokens: Tensor, confidence: Tensor, threshold: Tensor) -> None:
    """Fast-dLLM (arXiv 2505.22618): every masked position is compared in Python, in float64. One threshold for all."""
    tokens = torch.where(masked, tokens, canvas)
    confidence = torch.where(masked, confidence.double(), -torch.inf)
    chosen = above(confidence, masked, float(threshold[0]))
    canvas[chosen] = tokens[chosen]


def dinfer(canvas: Tensor, masked: Tensor, tokens: Tensor, confidence: Tensor, threshold: Tensor) -> None:
    """dInfer (arXiv 2510.08666): compiled and without a loop. Where nothing reaches the threshold, it takes
    all within SLACK of the best."""
    canvas.copy_(compiled(threshold_choice)(canvas, masked, tokens, confidence, threshold))


def threshold_choice(canvas: Tensor, masked: Tensor, tokens: Tensor, confidence: Tensor, threshold: Tensor) -> Tensor:
    """The canvas after the step, a new tensor."""
    confidence = torch.where(masked, confidence, -torch.inf)
    least = torch.minimum(confidence.amax(1) - SLACK, threshold)
    return torch.where(masked & (confidence >= least[:, None]), tokens, canvas)


def mdpo_remask(canvas: Tensor, latest: Tensor, count: Tensor, mask_id: int) -> None:
    """MDPO's running confidence remasking (arXiv 2508.13148), which takes one sequence at a time: the `count` [B] least
    confident positions become masks. `latest` [B, L] holds the confidence of each position's last fill; 0 means that it
    was never filled, and counts as certain."""
    for row in range(len(canvas)):
        certain = torch.where(latest[row] == 0.0, 1.0, latest[row])
        canvas[row, certain.topk(int(count[row]), largest=False).indices] = mask_id
