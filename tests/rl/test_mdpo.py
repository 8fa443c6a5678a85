"""MDPO against a loop over sequences and steps in float64, closed forms, the texts of steps, short runs."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import mdpo_oracle as oracle
import pytest
import torch
from torch import Tensor

import mdlm_fast as mf
from mdlm_fast.rl import MDPOConfig, MDPOTrainer, backward
from mdlm_fast.rl.buffer import RolloutBuffer
from mdlm_fast.rl.step_answers import predicted, step_answers
from mdlm_fast.rl.task_data import task_dataset
from mdlm_fast.tasks import sudoku_reward
from tests.rl import tiny


def number(text: str) -> float:
    """A number in [0, 1) that looks drawn from the text."""
    return zlib.crc32(text.encode()) % 1009 / 1009


def reward_a(completions: list[str], **_: Any) -> list[float]:
    return [number(text) for text in completions]


def reward_b(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [number(prompt + text) for prompt, text in zip(prompts, completions, strict=True)]


def make_trainer(tmp_path: Path, seed: int = 0, rewards: Any = reward_a, **fields: Any) -> Any:
    """3 prompts of 4 completions each, 8 tokens in 4 steps."""
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 12,
        "temperature": 0.7,
        "beta": 0.3,
        "sample_train_steps": 2,
        "num_iterations": 2,
        "logging_steps": 1,
        "seed": seed,
    }
    return tiny.trainer(MDPOTrainer, tmp_path / "run", tiny.model(seed), rewards=rewards, **{**settings, **fields})


def produce(trainer: Any, shuffle: int | None = None) -> tuple[RolloutBuffer, list[Any]]:
    """A first rollout and its items, in groups of four or shuffled."""
    items = [trainer.prompts[prompt, sample, 0] for prompt in (0, 1, 3) for sample in range(4)]
    if shuffle is not None:
        order = torch.randperm(12, generator=torch.Generator().manual_seed(shuffle)).tolist()
        items = [items[i] for i in order]
    return trainer.producer.produce(items), items


def backward_pass(trainer: Any, buffer: RolloutBuffer, first_pass: bool = False) -> float:
    """Loss of all micro-batches of an optimizer step, gradients in the parameters."""
    trainer.first_pass = first_pass
    size, losses = trainer.args.per_device_train_batch_size, []
    for first in range(0, 12, size):
        views = buffer.micro_batch(0, first, size)
        losses.append(float(backward.accumulate(trainer, trainer.policy.model, buffer, views)))
    return sum(losses)


RCR: dict[str, Any] = {"decoder_overrides": {"remasking": {}}}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rcr": RCR,
    "rcr blocks": {**RCR, "block_length": 4, "sample_train_steps": 3},
    "rcr canvas": {"decoder_overrides": {"remasking": {"scope": "canvas"}}, "block_length": 4},
    "blocks": {"block_length": 4, "sample_train_steps": 4},
    "ends early": {"decoder_overrides": {"stop_at_eos": True}, "diffusion_steps": 8, "sample_train_steps": 3},
    "threshold": {
        "decoder_overrides": {"select": "threshold", "threshold": 0.3, "score_scope": "generated"},
        "diffusion_steps": None,
    },
    "all steps, mean": {"sample_train_steps": 9, "step_reduction": "mean", "length_factor": "both"},
    "bare": {"length_factor": "none", "confidence_weight": "none", "completion_tokens": "first_eos"},
    "raw": {"decoder": "eoser", "confidence_weight": "policy"},
    "raw at temperature 1": {"decoder": "llada", "temperature": 1.0},
    "two micro-batches": {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2},
    "normalised apart": {
        "per_device_train_batch_size": 6,
        "gradient_accumulation_steps": 2,
        "loss_normalization": "micro_batch",
    },
}


@pytest.mark.parametrize(
    ("case", "seed"), [*((case, 1) for case in CASES), ("plain", 2), ("rcr", 2), ("blocks", 2), ("ends early", 2)]
)
def test_loss_and_gradients_are_those_of_a_plain_loop(case: str, seed: int, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, seed, [reward_a, reward_b], reward_weights=[1.0, 0.5], **CASES[case])
    module = trainer.policy.model
    before = oracle.in_float64(module)
    buffer, items = produce(trainer, shuffle=seed)
    tiny.move(module, seed)
    now = oracle.in_float64(module)
    prompts = [item["row"]["prompt"] for item in items]

    def reward(row: int, text: str) -> float:
        return number(text) + 0.5 * number(prompts[row] + text)

    wanted = oracle.mdpo_loss(now, before, buffer.batch, buffer.groups.tolist(), reward, trainer.args)
    wanted.backward()  # type: ignore[no-untyped-call]
    found = backward_pass(trainer, buffer)
    assert buffer.groups.unique().numel() == 3 and abs(float(wanted.detach())) > 1e-3
    assert found == pytest.approx(float(wanted.detach()), rel=1e-5, abs=1e-7)
    ours, theirs = (flat([p.grad for p in m.parameters()]) for m in (module, now))
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
    if case == "ends early":
        assert buffer.batch.trajectory.row_steps.unique().numel() > 1


def flat(tensors: list[Any]) -> Tensor:
    return torch.cat([t.double().flatten() for t in tensors])


@pytest.mark.parametrize("case", ["plain", "rcr blocks", "ends early", "raw at temperature 1"])
def test_recorded_log_probs_are_those_of_training(case: str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, 5, **CASES[case])
    buffer, _ = produce(trainer)
    views = buffer.micro_batch(0, 0, 12)
    assert all(view.old_logp is not None for view in views)
    backward_pass(trainer, buffer, first_pass=True)
    gap = trainer.metrics.state()["rollout/logp_gap_max"][0]
    assert 0 <= gap < 1e-4
    trainer.args.old_logprobs = "recompute"
    trainer.producer.build_views(buffer)
    trainer.producer._fill(buffer, buffer.views[0])
    for recorded, recomputed in zip(views, buffer.micro_batch(0, 0, 12), strict=True):
        assert recorded.old_logp is not None and recomputed.old_logp is not None
        torch.testing.assert_close(recorded.old_logp, recomputed.old_logp, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "fields",
    [
        {"decoder": "eoser"},  # ranks by the log-prob at temperature 1, trains at 0.7
        {"logp_temperature": 1.0},
        {"decoder_overrides": {"confidence": "margin"}},
        {"decoder_overrides": {"confidence": "neg_entropy"}, "confidence_weight": "none"},
        {"decoder_overrides": {"alg_temp": 0.5}},
        {"top_k": 5},
    ],
    ids=str,
)
def test_a_confidence_that_is_no_log_prob_of_training_is_not_taken_for_one(fields: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, 3, **fields)
    original = trainer.views
    seen = []

    def spy(chunk: Any, iteration: int) -> Any:
        seen.append(original(chunk, iteration))
        return list(seen[-1])

    trainer.views = spy
    buffer, _ = produce(trainer)
    assert seen[0] and all(view.old_logp is None for view in seen[0])
    backward_pass(trainer, buffer, first_pass=True)
    assert trainer.metrics.state()["rollout/logp_gap_max"][0] < 1e-4  # recomputed for the second pass


def test_before_any_update_the_loss_is_the_weighted_advantage(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, 4, sample_train_steps=3, beta=0.0)
    buffer, _ = produce(trainer)
    wanted = 0.0
    for row in range(12):
        for step, advantage in enumerate(buffer.advantages[row].tolist()):
            if advantage == advantage:
                _, confidence = oracle.prediction(buffer.batch.trajectory, row, step)
                mean = sum(torch.tensor(list(confidence.values())).exp().tolist()) / len(confidence)
                wanted -= advantage * mean * 8 / len(confidence) / 12
    assert backward_pass(trainer, buffer) == pytest.approx(wanted, rel=1e-5)
    assert (~buffer.advantages.isnan()).sum(1).tolist() == [3] * 12


def test_equal_rewards_give_no_gradient_but_the_penalty(tmp_path: Path) -> None:
    def same(completions: list[str], **_: Any) -> list[float]:
        return [0.3] * len(completions)

    for beta in (0.0, 0.3):
        trainer = make_trainer(tmp_path, 6, same, beta=beta)
        buffer, _ = produce(trainer)
        tiny.move(trainer.policy.model, 1)
        loss = backward_pass(trainer, buffer)
        moved = any(p.grad is not None and bool(p.grad.any()) for p in trainer.policy.model.parameters())
        assert (loss > 0) == moved == (beta > 0)


def test_two_completions_that_differ_at_one_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, sample_train_steps=1)
    trainer._active = torch.ones(4, 3, dtype=torch.bool)
    rewards = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    found = trainer.advantages(rewards, torch.tensor([7, 7, 2, 2]), None)
    # Rows of group 7 have A = (0.5, 1, -1) and 0: the largest differences are at steps 1 and 2, the earlier is taken.
    # Rows of group 2 have A = (0.5, 1, 2) and (1, 2, 1): again steps 1 and 2, of equal size.
    z = 0.5 / (0.5**0.5 + 1e-4)
    nan = float("nan")
    wanted = torch.tensor([[nan, z, nan], [nan, -z, nan], [nan, -z, nan], [nan, z, nan]])
    torch.testing.assert_close(found, wanted, equal_nan=True)
    trainer._active[2:, 1] = False  # nothing is masked there, so there is nothing to train on
    wanted[2:] = torch.tensor([[nan, nan, z], [nan, nan, -z]])
    found = trainer.advantages(rewards, torch.tensor([7, 7, 2, 2]), None)
    torch.testing.assert_close(found, wanted, equal_nan=True)


@pytest.mark.parametrize("case", ["plain", "rcr blocks", "rcr canvas", "ends early", "threshold"])
def test_texts_of_steps(case: str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, 8, **CASES[case])
    buffer, _ = produce(trainer)
    batch, trajectory = buffer.batch, buffer.batch.trajectory
    answers = step_answers(batch, trainer.processing_class, tiny.EOS)
    assert answers.texts == [oracle.step_texts(batch, row) for row in range(12)]
    assert [texts[-1] for texts in answers.texts] == batch.texts
    assert len({len(set(texts)) for texts in answers.texts}) > 1
    for row in range(12):
        for step in range(trajectory.steps):
            ids = answers.completion_ids[row][step]
            assert oracle.answer(ids) == answers.texts[row][step]
            assert tiny.MASK not in ids and not set(tiny.EOS) & set(ids[:-1])
            running = step < int(trajectory.row_steps[row])
            masked = trajectory.states(step)[row] == tiny.MASK
            assert bool(answers.active[row, step]) == (running and bool(masked.any()))
    whole = predicted(trajectory, trajectory.steps - 1)
    made_last = trajectory.row_steps == trajectory.steps
    assert torch.equal(whole.canvas[made_last], trajectory.sequences[made_last])


def test_each_distinct_answer_is_rewarded_once_and_the_final_one_is_logged(tmp_path: Path) -> None:
    calls = []

    def counted(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        calls.append(len(completions))
        assert len(completion_ids) == len(completions)
        return reward_a(completions)

    trainer = make_trainer(tmp_path, 9, counted, diffusion_steps=8, temperature=0.05)
    buffer, _ = produce(trainer)
    texts = [oracle.step_texts(buffer.batch, row) for row in range(12)]
    answers = step_answers(buffer.batch, trainer.processing_class, tiny.EOS)
    distinct = sum(len({tuple(ids) for ids in row}) for row in answers.completion_ids)
    assert calls == [distinct] and distinct < 12 * 8
    logged = {name: values[0] for name, values in trainer.metrics.state().items()}
    assert logged["step_rewards/calls"] == distinct and logged["step_rewards/calls_saved"] == 96 - distinct
    final = [number(row[-1]) for row in texts]
    assert logged["reward"] == logged["rewards/counted/mean"] == pytest.approx(sum(final) / 12)
    every = [number(text) for row in texts for text in row]
    assert logged["step_rewards/mean"] == pytest.approx(sum(every) / 96)
    assert logged["step_rewards/backslides"] == 0  # no reward reaches 1


def test_processes_agree_about_the_number_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path, 2)
    buffer, items = produce(trainer)
    wanted = trainer.reward(items, buffer.batch)
    monkeypatch.setattr(trainer.processes, "maximum", lambda value: value and value + 3)
    found = trainer.reward(items, buffer.batch)
    assert found.shape == (12, 7, 1) and torch.equal(found[:, :4], wanted)
    assert torch.equal(found[:, 4:], wanted[:, -1:].expand(-1, 3, -1))
    longer, _ = produce(trainer)
    assert longer.advantages.shape == (12, 7) and bool(longer.advantages[:, 4:].isnan().all())
    assert len(longer.views[0][0]) >= 2


def test_resuming_between_two_passes_over_a_rollout(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "learning_rate": 1e-3, **RCR}
    whole = make_trainer(tmp_path, 4, **fields)
    whole.train()
    resumed = make_trainer(tmp_path, 4, **fields)
    resumed.train(str(tmp_path / "run" / "checkpoint-1"))
    assert resumed.state.log_history[-2]["loss"] == whole.state.log_history[-2]["loss"] != 0
    start = tiny.model(4).model.state_dict()
    for (name, found), wanted in zip(
        resumed.policy.model.state_dict().items(), whole.policy.model.state_dict().values(), strict=True
    ):
        assert torch.equal(found, wanted) and not torch.equal(found, start[name])


def test_two_steps_on_puzzles(tmp_path: Path) -> None:
    trainer = tiny.trainer(
        MDPOTrainer,
        tmp_path,
        mf.load_model("builtin:puzzles"),
        task_dataset("sudoku", size=20),
        sudoku_reward,
        sample_train_steps=2,
        num_iterations=2,
        max_completion_length=24,
        diffusion_steps=6,
        learning_rate=1e-4,
        max_steps=4,
        logging_steps=1,
        decoder_overrides={"remasking": {}},
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 4
    for entry in logs[::2]:
        assert entry["rollout/logp_gap_max"] < 1e-4
        assert entry["step_rewards/calls"] + entry["step_rewards/calls_saved"] == 8 * 6
        assert entry["reward"] == entry["rewards/sudoku_reward/mean"]
    for entry in logs[1::2]:
        assert "rollout/logp_gap_max" not in entry and entry["log_ratio/mean_abs"] > 1e-4
    assert logs[-1]["kl"] > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sample_train_steps": 0}, "sample_train_steps=0"),
        ({"backslide_samples": 0}, "backslide_samples=0"),
        ({"length_factor": "kl"}, "length_factor='kl'"),
        ({"confidence_weight": "yes"}, "confidence_weight='yes'"),
        ({"step_reduction": "max"}, "step_reduction='max'"),
        ({"scale_rewards": "none"}, "scale_rewards='none'"),
        ({"decoder_overrides": {"confidence": "neg_entropy"}}, "confidence='neg_entropy'"),
        ({"decoder_overrides": {"temperature": 0.9}}, "'temperature': use the field temperature"),
        ({"decoder_overrides": {"gen_length": 9}}, "'gen_length': use the field max_completion_length"),
        ({"decoder_overrides": {"record": "none"}}, "'record': the method sets it"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        MDPOConfig(output_dir=str(tmp_path), use_cpu=True, **fields)
