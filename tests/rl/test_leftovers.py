"""What one pass, evaluation or run leaves behind must not reach the next, and what nobody measured is not logged."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mdlm_fast.rl import CJGRPOConfig, CJGRPOTrainer, OneStepGRPOTrainer, backward
from tests.rl import tiny
from tests.rl.watching import Gradients, without_times

RUN: dict[str, Any] = {"max_steps": 2, "logging_steps": 1, "num_iterations": 1, "beta": 0.0}
EVALUATED: dict[str, Any] = {"eval_dataset": [{"prompt": prompt} for prompt in tiny.PROMPTS[:3]]}


def constant(completions: list[str], **_: Any) -> list[float]:
    return [1.0] * len(completions)


def logs(trainer: Any, name: str) -> list[Any]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_a_run_after_one_that_stopped_in_a_step_has_the_gradients_of_a_fresh_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops behind the first of two micro-batches, whose part of the LM head's gradient was collected."""
    settings = {**RUN, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "views_per_backward": 1}
    fresh, again = Gradients(), Gradients()
    whole = tiny.trainer(CJGRPOTrainer, tmp_path, given={"callbacks": [fresh]}, **settings)
    whole.train()
    trainer = tiny.trainer(CJGRPOTrainer, tmp_path, given={"callbacks": [again]}, **settings)

    def stops(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(backward, "check_ratios", stops)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    trainer.train()
    for mine, wanted in zip(again.steps[0], fresh.steps[0], strict=True):
        assert torch.equal(mine, wanted)
    assert without_times(trainer.state.log_history) == without_times(whole.state.log_history)


def test_an_evaluation_leaves_nothing_in_the_log_of_training(tmp_path: Path) -> None:
    def judge(completions: list[str], log_extra: Any, log_metric: Any) -> list[float]:
        log_metric("size", float(len(completions)))
        if len(completions) == 3:  # in the evaluation
            log_extra("seen", ["x"] * 3)
            time.sleep(0.5)
        return tiny.reward(completions)

    evaluation = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 3}
    trainer = tiny.trainer(
        CJGRPOTrainer, tmp_path, rewards=judge, given=EVALUATED, log_completions=True, num_completions_to_print=0,
        **evaluation, **RUN,
    )  # fmt: skip
    assert trainer.evaluate()["eval_size"] == 3.0
    trainer.train()
    assert logs(trainer, "size") == [8.0, 8.0] and logs(trainer, "eval_size") == [3.0, 3.0]
    assert max(logs(trainer, "step_time")) < 0.5  # an evaluation takes longer


def test_the_reward_in_the_log_is_that_of_the_functions_whatever_advantages_are_made_of(tmp_path: Path) -> None:
    trainer = tiny.trainer(
        CJGRPOTrainer, tmp_path, multi_objective_aggregation="normalize_then_sum", reward_weights=[3.0], **RUN
    )
    trainer.train()
    for entry in trainer.state.log_history[:2]:
        assert entry["reward"] == pytest.approx(3 * entry["rewards/reward/mean"]) != 0


def test_tokens_so_far_are_the_latest_count(tmp_path: Path) -> None:
    each = tiny.trainer(CJGRPOTrainer, tmp_path, **RUN)
    each.train()
    once = tiny.trainer(CJGRPOTrainer, tmp_path, **{**RUN, "logging_steps": 2})
    once.train()
    counts = logs(each, "num_tokens")
    assert counts[0] < counts[1] and logs(once, "num_tokens") == counts[1:]


def test_nothing_scored_is_not_logged_as_an_entropy_of_zero(tmp_path: Path) -> None:
    trainer = tiny.trainer(CJGRPOTrainer, tmp_path, rewards=constant, **RUN)
    trainer.train()
    assert logs(trainer, "reward") == [1.0, 1.0]
    assert not logs(trainer, "entropy") and not logs(trainer, "rollout/logp_gap_max")


def test_a_process_without_views_takes_part_in_the_passes_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under FSDP every forward pass is collective, so whether old log-probs are scored is decided together."""
    trainer = tiny.trainer(OneStepGRPOTrainer, tmp_path, rewards=constant, **{**RUN, "num_iterations": 2})
    passes: list[int] = []
    score = trainer.producer.log_probs

    def counted(buffer: Any, views: Any, *rest: Any) -> Any:
        passes.append(len(views))
        return score(buffer, views, *rest)

    monkeypatch.setattr(trainer.producer, "log_probs", counted)
    buffer = tiny.produce(trainer)
    assert passes == []  # no process has anything to score
    monkeypatch.setattr(trainer.processes, "maximum", lambda value: max(value, 1))  # another one has
    trainer.producer._fill(buffer, buffer.views[0])
    assert passes == [0]


def test_one_gpu_a_process(tmp_path: Path) -> None:
    """With several, transformers would multiply the batch and cut it with DataParallel."""
    args = CJGRPOConfig(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=6)
    args._n_gpu = 4
    assert args.n_gpu == 1 and args.train_batch_size == 6
    args._n_gpu = 0
    assert args.n_gpu == 0


def test_a_head_alone_can_be_trained(tmp_path: Path) -> None:
    """Its hidden states have no graph."""
    gradients = {}
    for alone in (True, False):
        policy, seen = tiny.model(), Gradients()
        policy.model.requires_grad_(not alone)
        policy.model.lm_head.requires_grad_(True)
        tiny.trainer(CJGRPOTrainer, tmp_path, policy, given={"callbacks": [seen]}, **RUN).train()
        gradients[alone] = seen.steps[0]
    assert len(gradients[True]) == 1
    torch.testing.assert_close(gradients[True][0], gradients[False][-1], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("changed", [{"beta": 0.5}, {"completion_tokens": "all"}, {"temperature": 0.7}], ids=str)
def test_a_rollout_saved_under_other_settings_is_decoded_anew(tmp_path: Path, changed: dict[str, Any]) -> None:
    settings = {**RUN, "max_steps": 4, "num_iterations": 4, "save_strategy": "steps", "save_steps": 2}
    tiny.trainer(CJGRPOTrainer, tmp_path, **settings).train()
    resumed = tiny.trainer(CJGRPOTrainer, tmp_path, **{**settings, **changed})
    with pytest.warns(RuntimeWarning, match=f"other settings .{next(iter(changed))} "):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 4
