"""MDPO's loss once more, one sequence and one step at a time, in float64 with whole logits."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mdlm_fast.rl.rollout import RolloutBatch
from mdlm_fast.trajectory import Trajectory
from tests.rl import tiny


def answer(tokens: list[int]) -> str:
    """The text of generated tokens."""
    end = next((i for i, token in enumerate(tokens) if token in tiny.EOS), len(tokens))
    return " ".join(tiny.WORDS[token] for token in tokens[:end] if token > 2)


def prediction(trajectory: Trajectory, row: int, step: int) -> tuple[list[int], dict[int, float]]:
    """(canvas with all masks of a step filled in, recorded confidence of each filled position)."""
    record = trajectory.predictions
    assert record is not None
    canvas, confidence = trajectory.states(step)[row].tolist(), {}
    for position, token in enumerate(canvas):
        column = position - int(record.start[row])
        if token == trajectory.mask_id and int(record.token[row, step, column]) >= 0:
            canvas[position] = int(record.token[row, step, column])
            confidence[position] = float(record.confidence[row, step, column])
    return canvas, confidence


def step_texts(batch: RolloutBatch, row: int) -> list[str]:
    """The answer of every step; a row that ended repeats its last."""
    steps = int(batch.trajectory.row_steps[row])
    where = batch.generated[row].nonzero().flatten().tolist()
    texts = []
    for step in range(batch.trajectory.steps):
        canvas, _ = prediction(batch.trajectory, row, min(step, steps - 1))
        texts.append(answer([canvas[position] for position in where]))
    return texts


def step_advantages(rewards: list[list[float]], groups: list[int]) -> list[list[float]]:
    """From the rewards [B][S] of every step's answer."""
    raw = []
    for row in rewards:
        future = [sum(row[t + 1 :]) / len(row[t + 1 :]) if row[t + 1 :] else row[-1] for t in range(len(row))]
        raw.append([row[t] - (row[t - 1] if t else 0.0) + future[t] for t in range(len(row))])
    result = []
    for b, row in enumerate(raw):
        members = [raw[i] for i in range(len(raw)) if groups[i] == groups[b]]
        of_row = []
        for t, value in enumerate(row):
            values = [member[t] for member in members]
            mean = sum(values) / len(values)
            spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
            of_row.append((value - mean) / (spread + 1e-4))
        result.append(of_row)
    return result


def chosen_steps(advantages: list[list[float]], members: list[int], steps: list[int], k: int) -> list[int]:
    """The k steps with the largest sums of |advantage| over the members of a group that made the step (steps: how many
    each row made)."""
    size = [sum(abs(advantages[i][t]) for i in members if t < steps[i]) for t in range(max(steps))]
    return sorted(range(max(steps)), key=lambda t: (-round(size[t], 5), t))[:k]


def log_probs(model: nn.Module, trajectory: Trajectory, real: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """float64 [L, V] of one canvas, pads cut out before the forward pass."""
    logits = model(input_ids=ids[real][None], attention_mask=None, use_cache=False).logits[0] / temperature
    banned = torch.zeros(logits.shape[1], dtype=torch.bool)
    banned[list(trajectory.forbidden_ids)] = True
    whole = torch.full((len(ids), logits.shape[1]), torch.nan, dtype=torch.float64)
    whole[real] = logits.masked_fill(banned, -torch.inf).log_softmax(-1)
    return whole


def mdpo_loss(
    model: nn.Module,
    before: nn.Module,
    batch: RolloutBatch,
    groups: list[int],
    reward: Callable[[int, str], float],
    args: Any,
) -> Tensor:
    """The loss of a whole batch as a float64 scalar with a graph to ``model``.

    model, before: plain modules in float64, the policy and the one that decoded (which is the reference too).
    reward: of (row, text).
    """
    trajectory, rows = batch.trajectory, range(len(groups))
    rewards = [[reward(row, text) for text in step_texts(batch, row)] for row in rows]
    advantages = step_advantages(rewards, groups)
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        members = [i for i in rows if groups[i] == groups[row]]
        steps = trajectory.row_steps.tolist()
        for step in chosen_steps(advantages, members, steps, args.sample_train_steps):
            if step >= steps[row]:
                continue
            canvas, confidence = prediction(trajectory, row, step)
            positions = list(confidence)
            if args.completion_tokens == "first_eos":
                ends = [p for p in range(len(canvas)) if batch.generated[row, p] and canvas[p] in tiny.EOS]
                positions = [p for p in positions if not ends or p <= min(ends)]
            targets, real = torch.tensor(canvas), batch.attention_mask[row]
            ids = trajectory.states(step)[row]
            new = log_probs(model, trajectory, real, ids, args.training_temperature)
            with torch.no_grad():
                old = log_probs(before, trajectory, real, ids, args.training_temperature)
                drawn = old
                if args.decode_config().confidence_from == "raw":
                    with torch.no_grad():
                        drawn = log_probs(before, trajectory, real, ids, 1.0)
            count, length = len(positions), int(batch.generated[row].sum())
            for p in positions:
                ratio = (new[p, targets[p]] - old[p, targets[p]]).exp()
                a = advantages[row][step]
                policy = -torch.minimum(ratio * a, ratio.clamp(1 - args.epsilon, 1 + args.epsilon) * a)
                penalty = (old[p, targets[p]] - new[p, targets[p]]) ** 2 / 2
                c, f = drawn[p, targets[p]].exp(), length / count
                policy = policy * (1 if args.confidence_weight == "none" else c)
                policy = policy * (1 if args.length_factor == "none" else f)
                penalty = penalty * (c if args.confidence_weight == "both" else 1)
                penalty = penalty * (f if args.length_factor == "both" else 1)
                share = 1 / (count * len(groups))
                if args.step_reduction == "mean":
                    share /= min(args.sample_train_steps, trajectory.steps)
                total = total + share * (policy + args.beta * penalty)
    return total


def in_float64(model: nn.Module) -> nn.Module:
    """A copy."""
    return copy.deepcopy(model).double().eval()
