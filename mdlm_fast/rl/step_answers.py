"""What every step of a rollout predicted, and the text that it would have answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdlm_fast.config import DecodeConfig
from mdlm_fast.rl.data import Item, PromptSet
from mdlm_fast.rl.rewards import RewardRunner, StepRewards
from mdlm_fast.rl.rollout import RolloutBatch, completion_tokens
from mdlm_fast.trajectory import Trajectory


class Prediction(NamedTuple):
    """What a step predicted of the whole canvas.

    masked: bool [B, L], positions that were masked when the step began and have a prediction. canvas: int64 [B, L], the
    state entering the step with these positions filled in. confidence: float32 [B, L], of the predictions, as recorded
    by the decoder; NaN elsewhere.
    """

    masked: Tensor
    canvas: Tensor
    confidence: Tensor


def recording_predictions(config: DecodeConfig) -> DecodeConfig:
    """The config with every step's predictions recorded, at all masked positions and not in the active block alone."""
    scope = "masked" if config.score_scope == "block" else config.score_scope
    return config.replace(record="full", score_scope=scope)


def predicted(trajectory: Trajectory, step: int) -> Prediction:
    """What ``step``, below trajectory.steps, predicted. Rows that had ended by then have no masked position.

    Raises:
        ValueError: the trajectory was recorded without predictions.
    """
    record = trajectory.predictions
    if record is None:
        raise ValueError("the trajectory holds no predictions: decode with record='full'")
    rows, length = trajectory.sequences.shape
    column = record.start[:, None] + torch.arange(record.token.shape[2], device=record.token.device)
    column = column.clamp(max=length)  # a row that starts later has fewer columns; the others are left out
    token = trajectory.sequences.new_full((rows, length + 1), -1)
    token = token.scatter(1, column, record.token[:, step].long())[:, :length]
    confidence = record.confidence.new_full((rows, length + 1), torch.nan)
    confidence = confidence.scatter(1, column, record.confidence[:, step])[:, :length]
    state = trajectory.states(step)
    masked = trajectory.eligible & (state == trajectory.mask_id) & (token >= 0)
    return Prediction(masked, torch.where(masked, token, state), confidence)


class StepAnswers(NamedTuple):
    """What B completions would have been if their decode had ended after each of S steps.

    texts: [B][S], up to the first EOS. completion_ids: [B][S], the tokens up to and including it. active: bool [B, S],
    whether the step had anything to predict.
    """

    texts: list[list[str]]
    completion_ids: list[list[list[int]]]
    active: Tensor


def step_answers(batch: RolloutBatch, tokenizer: Any, eos_ids: Sequence[int]) -> StepAnswers:
    """The answers of every step of a rollout. A row's last step, and all after it, are its completion itself."""
    trajectory, eos_ids = batch.trajectory, tuple(eos_ids)
    texts: list[list[str]] = [[] for _ in batch.texts]
    completion_ids: list[list[list[int]]] = [[] for _ in batch.texts]
    last = (trajectory.row_steps - 1).tolist()
    active: list[Tensor] = []
    known: dict[tuple[int, ...], str] = {}
    for step in range(trajectory.steps):
        prediction = predicted(trajectory, step)
        active.append(prediction.masked.any(1))
        answered = completion_tokens(prediction.canvas.cpu(), batch.generated.cpu(), eos_ids)
        for row, ids in enumerate(answered):
            if step >= last[row]:
                texts[row].append(batch.texts[row])
                completion_ids[row].append(batch.completion_ids[row])
                continue
            key = tuple(ids)
            if key not in known:
                plain = [token for token in ids if token not in eos_ids and token != trajectory.mask_id]
                known[key] = tokenizer.decode(plain, skip_special_tokens=True)
            texts[row].append(known[key])
            completion_ids[row].append(ids)
    return StepAnswers(texts, completion_ids, torch.stack(active, 1))


def reward_answers(
    runner: RewardRunner,
    prompts: PromptSet,
    items: Sequence[Item],
    answers: StepAnswers,
    **logging: Any,
) -> Tensor:
    """float32 [B, S, F], the reward functions' answers to each step's text (on the CPU), NaN where one gave None.

    logging: trainer_state, log_extra and log_metric of `StepRewards`."""
    return StepRewards(runner)(
        prompts=[item["row"]["prompt"] for item in items],
        texts=answers.texts,
        completion_ids=answers.completion_ids,
        columns=prompts.reward_columns(items),
        **logging,
    )
