"""Evaluation: rewards of one completion for every prompt of a data set, under the evaluation's decoder."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING

import torch

from mdlm_fast.rl.data import PromptSet
from mdlm_fast.rl.rollout import rollout_items

if TYPE_CHECKING:
    from mdlm_fast.rl.trainer import MaskedDiffusionTrainer


def evaluate_prompts(trainer: MaskedDiffusionTrainer, prompts: PromptSet, prefix: str) -> dict[str, float]:
    """Decodes every prompt once and returns the rewards' means.

    Every process takes its share; shares are filled up with repeated prompts, which do not count, so that all processes
    run the same number of batches.

    Returns:
        "<prefix>_reward", "<prefix>_rewards/<function>/mean", "<prefix>_forwards_per_batch", "<prefix>_mean_length",
        "<prefix>_runtime" in seconds, "<prefix>_samples_per_second", and the means of what reward functions logged.
    """
    args, processes = trainer.args, trainer.processes
    config = args.eval_decode_config().replace(record="trajectory")
    count, size = len(prompts), args.per_device_eval_batch_size
    share = -(-count // processes.count)
    numbers = [min(processes.index * share + i, count - 1) for i in range(share)]
    counted = [processes.index * share + i < count for i in range(share)]
    began, forwards, batches = time.perf_counter(), 0, 0
    rewards, lengths = [], []
    logged: dict[str, list[float]] = defaultdict(list)

    def log_metric(name: str, value: float) -> None:
        logged[name].append(value)

    for first in range(0, share, size):
        items = [prompts[number] for number in numbers[first : first + size]]
        batch = rollout_items(trainer.policy, prompts, items, args.seed, config)
        rewards.append(trainer.call_rewards(prompts, items, batch, log_metric=log_metric))
        lengths += [float(len(ids)) for ids in batch.completion_ids]
        forwards, batches = forwards + batch.forwards, batches + 1
    table = torch.cat([torch.cat(rewards), torch.tensor(lengths)[:, None], torch.tensor(counted)[:, None]], 1)
    table = processes.gather(table.float().to(args.device)).cpu()
    table = table[table[:, -1] > 0]
    scored = table[:, : len(trainer.rewards.names)]
    seconds = time.perf_counter() - began
    weights = torch.tensor(trainer.rewards.weights)
    results = processes.mean({name: sum(values) / len(values) for name, values in logged.items()})
    results |= {f"rewards/{name}/mean": float(scored[:, i].nanmean()) for i, name in enumerate(trainer.rewards.names)}
    results |= {
        "reward": float((scored * weights).nansum(1)[~scored.isnan().all(1)].mean()),
        "mean_length": float(table[:, -2].mean()),
        "forwards_per_batch": forwards / max(batches, 1),
        "runtime": round(seconds, 4),
        "samples_per_second": round(count / seconds, 3),
    }
    return {f"{prefix}_{name}": value for name, value in results.items()}
