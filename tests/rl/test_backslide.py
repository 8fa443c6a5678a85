"""MDPO's filter of training prompts: those whose decode had the right answer and lost it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mdpo_oracle import step_texts

import mdlm_fast as mf
from mdlm_fast.rl import MDPOTrainer
from mdlm_fast.rl.backslide import select_backslides
from mdlm_fast.rl.rollout import rollout, sequence_seeds
from tests.rl import tiny


def slides(order: dict[str, str]) -> Callable[..., list[float]]:
    """Rewards by the prompt: "slide": the first answer is right and no other; "keep": all are; "lose": none is."""

    def by_prompt(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        seen: list[str] = []
        first = ""
        rewards = []
        for prompt, text in zip(prompts, completions, strict=True):
            if order[prompt] != "slide":
                rewards.append(float(order[prompt] == "keep"))
                continue
            is_new_row = not seen or seen[-1] != prompt
            first = text if is_new_row else first
            rewards.append(float(text == first))
            seen.append(prompt)
        return rewards

    return by_prompt


ORDER = dict(zip(tiny.PROMPTS, ["keep", "slide", "lose", "slide"], strict=True))


def test_the_filter_keeps_prompts_whose_right_answer_was_lost(tmp_path: Path) -> None:
    trainer = tiny.trainer(MDPOTrainer, tmp_path, rewards=slides(ORDER))
    common = (
        trainer.policy,
        trainer.prompts,
        trainer.rewards,
        mf.DecodeConfig(gen_length=16, steps=8, temperature=1.0),
    )
    for size in (1, 3, 4):
        assert select_backslides(*common, batch_size=size, progress=False) == [1, 3]
    assert select_backslides(*common, batch_size=4, samples=2, progress=False) == [1, 3]
    with pytest.raises(ValueError, match=r"none of the 4 prompts .* filter_backslides=False"):
        select_backslides(*common, batch_size=4, correct=1.5, progress=False)


@pytest.mark.parametrize("samples", [1, 3])
def test_one_completion_that_backslides_is_enough(samples: int, tmp_path: Path) -> None:
    rows = [f"w{i} w{i + 1}" for i in range(10, 30)]
    trainer = tiny.trainer(MDPOTrainer, tmp_path, rows=rows, rewards=tiny.reward)
    config = mf.DecodeConfig(gen_length=8, steps=3, temperature=1.0, record="full")
    wanted = []
    for number in range(20):
        key = torch.full((samples,), number)
        seeds = sequence_seeds(5, torch.full_like(key, -1), key, torch.arange(samples))
        ids, mask = trainer.prompts.encode([trainer.prompts[number]] * samples)
        batch = rollout(trainer.policy, ids, mask, seeds, config)
        right = [[tiny.reward([text])[0] >= 0.7 for text in step_texts(batch, row)] for row in range(samples)]
        wanted += [number] if any(any(steps[:-1]) and not steps[-1] for steps in right) else []
    kept = select_backslides(
        trainer.policy,
        trainer.prompts,
        trainer.rewards,
        config,
        batch_size=7,
        samples=samples,
        correct=0.7,
        seed=5,
        progress=False,
    )
    assert kept == wanted and 3 < len(kept) < 20


def test_training_on_backslides_alone_and_resuming(tmp_path: Path) -> None:
    trained: list[str] = []

    def noting(order: dict[str, str]) -> Any:
        inner = slides(order)

        def reward(prompts: list[str], completions: list[str], trainer_state: Any, **_: Any) -> list[float]:
            if trainer_state is not None:
                trained.extend(prompts)
            return inner(prompts, completions)

        return reward

    fields: dict[str, Any] = {
        "max_completion_length": 16,
        "diffusion_steps": 8,
        "temperature": 1.0,
        "filter_backslides": True,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    tiny.trainer(MDPOTrainer, tmp_path, rewards=noting(ORDER), max_steps=1, **fields).train()
    saved = json.loads((tmp_path / "backslides.json").read_text())
    assert saved == {"prompts": 4, "rows": [1, 3]} and set(trained) == {tiny.PROMPTS[1], tiny.PROMPTS[3]}
    trained.clear()
    other = dict.fromkeys(tiny.PROMPTS, "slide")
    tiny.trainer(MDPOTrainer, tmp_path, rewards=noting(other), max_steps=2, **fields).train(True)
    assert set(trained) == {tiny.PROMPTS[1], tiny.PROMPTS[3]}
    with pytest.raises(ValueError, match="data set of 4 prompts, this one has 3"):
        tiny.trainer(MDPOTrainer, tmp_path, rows=tiny.PROMPTS[:3], rewards=noting(other), max_steps=3, **fields).train(
            True
        )
