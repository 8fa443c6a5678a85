"""MDPO's filter of training prompts: those whose decode had the right answer at some step and lost it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mdlm_fast.config import DecodeConfig
from mdlm_fast.models import MaskedDiffusionModel
from mdlm_fast.rl.data import PromptSet, answer_backslide
from mdlm_fast.rl.objectives import combine_rewards
from mdlm_fast.rl.processes import Processes
from mdlm_fast.rl.rewards import RewardRunner
from mdlm_fast.rl.rollout import rollout_items
from mdlm_fast.rl.step_answers import recording_predictions, reward_answers, step_answers

#: In place of the number of a rollout in training, so that the filter draws other tokens than training does.
FILTER_GENERATION = -1


def select_backslides(
    model: MaskedDiffusionModel,
    prompts: PromptSet,
    rewards: RewardRunner,
    config: DecodeConfig,
    *,
    batch_size: int,
    samples: int = 1,
    correct: float = 1.0,
    seed: int = 0,
    processes: Processes | None = None,
    progress: bool = True,
) -> list[int]:
    """Row numbers, ascending, of the prompts of which a completion backslides (`mdlm_fast.rl.data.answer_backslide`).

    One pass of rollouts over the data set. Several processes share it; all get the whole result.

    Args:
        model: decodes.
        prompts: the data set.
        rewards: the reward functions; an answer is right from a weighted sum of `correct` on.
        config: of the rollouts; every step's predictions are recorded whatever it says.
        batch_size: completions decoded together on a process.
        samples: completions of each prompt; one that backslides is enough.
        seed: of the draws, which depend neither on batch_size nor on the number of processes.
        processes: the run's, or None for one process.
        progress: show a bar.

    Raises:
        ValueError: no prompt is left. RewardError: a reward function failed.

    Source: MDPO (arXiv 2508.13148).
    """
    config = recording_predictions(config)
    index, count = (0, 1) if processes is None else (processes.index, processes.count)
    keys = [(number, sample, FILTER_GENERATION) for number in range(len(prompts)) for sample in range(samples)]
    keys = keys[index::count]
    backslides = torch.zeros(len(prompts), dtype=torch.int64, device=model.device)
    with _bar("looking for answer backslides", len(keys), progress and index == 0) as advance:
        for first in range(0, len(keys), batch_size):
            part = keys[first : first + batch_size]
            found = _backslides(model, prompts, rewards, config, part, correct, seed)
            numbers = torch.tensor([number for number, _, _ in part], device=model.device)
            backslides.index_add_(0, numbers, found.to(backslides))
            advance(len(part))
    if processes is not None:
        backslides = processes.total(backslides)
    kept: list[int] = backslides.nonzero().flatten().tolist()
    if not kept:
        raise ValueError(
            f"none of the {len(prompts)} prompts has a completion whose answer was right (a reward of {correct} or "
            "more) at some step and wrong at the end, so nothing is left to train on; set filter_backslides=False, or "
            "try backslide_samples above 1, a higher temperature, or another correct_reward"
        )
    return kept


def _backslides(
    model: MaskedDiffusionModel,
    prompts: PromptSet,
    rewards: RewardRunner,
    config: DecodeConfig,
    keys: list[tuple[int, int, int]],
    correct: float,
    seed: int,
) -> torch.Tensor:
    """bool [n], on the CPU, for the keys (number of the prompt, sample, generation)."""
    items = [prompts[key] for key in keys]
    batch = rollout_items(model, prompts, items, seed, config)
    scored = reward_answers(rewards, prompts, items, step_answers(batch, prompts.tokenizer, model.eos_ids))
    together = torch.zeros(scored.shape[:2].numel(), dtype=torch.int64)
    weights = torch.tensor(rewards.weights)
    combined = combine_rewards(scored.flatten(0, 1), weights, together, "sum_then_normalize")
    return answer_backslide(combined.view(scored.shape[:2]), correct)


@contextmanager
def _bar(text: str, total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar, to be told how many more are done."""
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TextColumn("completions"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task(text, total=total)

        def advance(count: int) -> None:
            bar.advance(task, count)

        yield advance
