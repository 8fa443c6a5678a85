"""Accuracy on fresh puzzles while training goes on: confidence order, one token a step, on the full canvas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..tasks.countdown import countdown_correct
from ..tasks.sudoku import sudoku_correct
from ..tasks.vocabulary import EOS_ID, MASK_ID, decode
from .data import GEN_LENGTH, countdown_batch, sudoku_batch

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from .stream import PuzzleData

MONITOR_SEED = 2**31 - 1
MONITOR_PUZZLES = 100


@torch.no_grad()
def greedy_answers(network: LlamaForCausalLM, prompt: torch.Tensor, eos_last: bool = False) -> torch.Tensor:
    """Commits the most confident position of each row per forward pass; int64 [b, GEN_LENGTH].

    eos_last: positions whose likeliest token is EOS wait until no other is left."""
    batch, start = prompt.shape
    canvas = torch.cat([prompt, torch.full((batch, GEN_LENGTH), MASK_ID)], dim=1)
    rows = torch.arange(batch)
    for _ in range(GEN_LENGTH):
        logits = network(input_ids=canvas).logits[:, start:].float()
        logits[..., MASK_ID] = -torch.inf
        confidence, token = logits.softmax(-1).max(-1)
        if eos_last:
            confidence = torch.where(token == EOS_ID, confidence - 1, confidence)
        confidence = confidence.masked_fill(canvas[:, start:] != MASK_ID, -torch.inf)
        position = confidence.argmax(1)
        canvas[rows, start + position] = token[rows, position]
    return canvas[:, start:]


def monitor(network: LlamaForCausalLM, data: PuzzleData) -> dict[str, float]:
    """Shares solved of `MONITOR_PUZZLES` generated puzzles a task: the same ones every time, none of the test files."""
    rng = np.random.default_rng(MONITOR_SEED)
    countdown, _ = countdown_batch(rng, MONITOR_PUZZLES, data.countdown_held_out)
    sudoku, _ = sudoku_batch(rng, MONITOR_PUZZLES, data.grids, data.sudoku_held_out)
    result: dict[str, float] = {}
    for name, prompts, correct, eos_last in (
        ("countdown", countdown, countdown_correct, False),
        ("countdown_eos_last", countdown, countdown_correct, True),
        ("sudoku", sudoku, sudoku_correct, False),
    ):
        answers = greedy_answers(network, torch.from_numpy(prompts), eos_last).tolist()
        solved = [correct(decode(prompt), decode(answer)) for prompt, answer in zip(prompts, answers, strict=True)]
        result[name] = float(np.mean(solved))
    return result
