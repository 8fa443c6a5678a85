"""Killed anywhere, a run goes on to the bit; torn checkpoints are seen; full disks and bad rewards lose nothing."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from mdlm_fast.rl import CJGRPOTrainer, DiffuGRPOTrainer, MDPOTrainer, checkpoints
from mdlm_fast.rl.checkpoints import CheckpointError
from mdlm_fast.rl.lora import lora_config
from mdlm_fast.rl.manifest import MANIFEST, delete_old_checkpoints, last_whole_checkpoint, why_torn, write_manifest
from mdlm_fast.rl.reward_checks import RewardError
from tests.rl import tiny
from tests.rl.programs import run_once
from tests.rl.watching import without_times

# ---- killed by SIGKILL, resumed in another process -------------------------------------------------------------------

#: Where the program's runs die: (checkpoint that is resumed from, number of the torn one, name of the run to equal).
KILLS = {
    "in a rollout": (3, None, "whole"),
    "between micro-batches": (3, None, "whole"),
    "between packs": (6, None, "whole"),
    "after an update": (6, None, "whole"),
    "in the first checkpoint": (0, 3, "whole"),
    "after the model file": (3, 6, "whole"),
    "in the rollout's file": (6, 8, "whole wide"),
    "before the manifest": (3, 6, "whole"),
    "in the manifest": (3, 6, "whole"),
    "while an old one is deleted": (6, None, "whole"),
    "in a wide logging window": (4, None, "whole wide"),
}
MODELS = ["tiny", pytest.param("builtin:puzzles", marks=pytest.mark.slow)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("case", KILLS)
def test_a_killed_run_goes_on_to_the_bit(tmp_path_factory, model, case):
    folder = run_once(tmp_path_factory, "checkpoints_program.py", model)
    start, torn, reference = KILLS[case]
    result, whole = (json.loads((folder / f"{name}.json").read_text()) for name in (case, reference))
    assert result["steps"] == 8 - start
    assert result["log"] == whole
    assert len({entry["loss"] for entry in whole if "loss" in entry}) > 1
    assert [f"checkpoint-{torn} is torn" in w for w in result["warnings"]] == ([] if torn is None else [True])
    assert result["left"] == ["checkpoint-8"]
    assert completions(folder / case, start) == completions(folder / reference, start)


def completions(folder: Path, start: int) -> dict[str, bytes]:
    """The files of completions written after a step."""
    found = (folder / "completions").glob("*.parquet")
    return {path.name: path.read_bytes() for path in found if int(path.stem.rsplit("_", 1)[1]) > start}


@pytest.mark.parametrize("model", MODELS)
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path_factory, model):
    folder = run_once(tmp_path_factory, "checkpoints_program.py", model)
    result = json.loads((folder / "full disk.json").read_text())
    assert result["left"] == ["checkpoint-3"] and result["torn"] is None
    assert "checkpoint-6 could not be written" in result["message"] and "File too large" in result["message"]
    assert result["message"].endswith(f"training can go on from {folder / 'full disk' / 'checkpoint-3'}")


# ---- in this process -------------------------------------------------------------------------------------------------


def run(folder: Path, resume: Any = None, kind: Any = CJGRPOTrainer, policy: Any = None, **settings: Any) -> Any:
    """A finished training: 6 steps, two a rollout."""
    given, rewards = settings.pop("given", None), settings.pop("rewards", tiny.reward)
    trainer = tiny.trainer(
        kind,
        folder,
        policy,
        rewards=rewards,
        given=given,
        **{"beta": 0.1, "num_iterations": 2, "max_steps": 6, "logging_steps": 1, "learning_rate": 1e-3, **settings},
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with checkpoints of 1, 3 and 5 steps and the last."""
    folder = tmp_path_factory.mktemp("saved")
    run(folder, save_strategy="steps", save_steps=2)
    return folder


def with_adapter(seed: int = 3) -> Any:
    torch.manual_seed(seed)
    return {"peft_config": lora_config(tiny.model().model, r=2, alpha=4)}


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "adapter, reference off": lambda: {"given": with_adapter()},
    "adapter, moving reference": lambda: {
        "given": with_adapter(),
        "sync_ref_model": True,
        "ref_model_sync_steps": 1,
        "ref_model_mixup_alpha": 0.5,
    },
    "mdpo with remasking": lambda: {
        "kind": MDPOTrainer,
        "decoder_overrides": {"remasking": {}},
        "temperature": 1.0,
        "sample_train_steps": 2,
    },
    "new views a pass": lambda: {"kind": DiffuGRPOTrainer, "p_mask_prompt": 0.4},
    "several steps a rollout": lambda: {"per_device_train_batch_size": 4, "steps_per_generation": 2},
    "truncated importance": lambda: {
        "old_logprobs": "recompute",
        "importance_sampling_cap": 1.0,
        "top_p": 0.9,
        "temperature": 0.7,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_goes_on_to_the_bit(tmp_path, case):
    whole = run(tmp_path, save_strategy="steps", save_steps=1, **CASES[case]())
    tiny.move(whole.policy.model, 9)  # what is resumed comes from the files
    other = run(tmp_path, str(tmp_path / "checkpoint-3"), save_strategy="no", **CASES[case]())
    assert without_times(other.state.log_history) == without_times(whole.state.log_history)
    assert len(whole.state.log_history) == 7


def test_dropout_goes_on_with_the_same_draws(tmp_path):
    def policy() -> Any:
        model = tiny.model()
        for layer in model.model.model.layers:
            layer.self_attn.attention_dropout = 0.3
        return model

    settings: dict[str, Any] = {"disable_dropout": False}
    whole = run(tmp_path, policy=policy(), save_strategy="steps", save_steps=3, **settings)
    other = run(tmp_path, str(tmp_path / "checkpoint-3"), policy=policy(), save_strategy="no", **settings)
    plain = run(tmp_path, policy=policy(), save_strategy="no")
    assert without_times(other.state.log_history) == without_times(whole.state.log_history)
    assert without_times(plain.state.log_history)[0]["loss"] != without_times(whole.state.log_history)[0]["loss"]


def test_other_settings_in_the_middle_of_a_rollout_decode_it_anew(tmp_path):
    run(tmp_path, save_strategy="steps", save_steps=3)
    with pytest.warns(
        RuntimeWarning, match=r"checkpoint-3 was .* in the middle of a rollout .* \(num_iterations 2, now"
    ):
        trainer = run(tmp_path, str(tmp_path / "checkpoint-3"), num_iterations=4)
    assert trainer.state.global_step == 6


# ---- torn checkpoints ------------------------------------------------------------------------------------------------


def truncate(folder: Path) -> None:
    path = folder / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "optimizer.pt is not what was written"),
    "flipped": (flip, "model.safetensors is not what was written"),
    "file gone": (lambda folder: (folder / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), f"it has no {MANIFEST}"),
    "half a manifest": (lambda folder: (folder / MANIFEST).write_text('{"a'), f"its {MANIFEST} cannot be read"),
    "empty": (empty, f"it has no {MANIFEST}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_torn_checkpoint_is_named_and_the_one_before_used(tmp_path, saved, damage):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    (folder / "checkpoint-x").mkdir()
    tear, reason = DAMAGE[damage]
    tear(folder / "checkpoint-6")
    with pytest.warns(RuntimeWarning, match=f"checkpoint-6 is torn and not used: {reason}"):
        assert last_whole_checkpoint(folder) == folder / "checkpoint-4"
    trainer = tiny.trainer(CJGRPOTrainer, folder)
    with pytest.raises(CheckpointError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-6"))
    assert f"checkpoint-6 is not whole: {reason}" in str(caught.value)
    assert str(caught.value).endswith(f"resume from {folder / 'checkpoint-4'}")


def test_without_a_whole_checkpoint_there_is_none(tmp_path):
    assert last_whole_checkpoint(tmp_path) is None
    trainer = tiny.trainer(CJGRPOTrainer, tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoint-1 is not whole: there is no such folder; there is no whole"):
        trainer.train(resume_from_checkpoint=tmp_path / "checkpoint-1")


def test_large_files_are_checked_by_size(tmp_path, monkeypatch):
    monkeypatch.setattr("mdlm_fast.rl.manifest.HASHED_BYTES", 9)
    (tmp_path / "file").write_bytes(b"0123456789")
    write_manifest(tmp_path)
    (tmp_path / "file").write_bytes(b"9876543210")
    assert why_torn(tmp_path) is None
    (tmp_path / "file").write_bytes(b"012345678")
    assert why_torn(tmp_path) == "file is not what was written"


def test_old_checkpoints_are_deleted_by_age_and_torn_ones_first(tmp_path):
    for number in (9, 2, 4, 6):  # 9 is of an earlier run
        (tmp_path / f"checkpoint-{number}" / "part").mkdir(parents=True)
        (tmp_path / f"checkpoint-{number}" / "part" / "file").write_text(str(number))
        write_manifest(tmp_path / f"checkpoint-{number}")
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-last").mkdir()

    def left(limit: int | None, best: str | None = None) -> list[str]:
        delete_old_checkpoints(tmp_path, limit, best)
        return sorted(path.name.removeprefix("checkpoint-") for path in tmp_path.iterdir())

    assert left(None) == left(0) == ["2", "4", "5", "6", "9", "last"]
    assert left(4) == ["2", "4", "6", "9", "last"]
    assert left(3, str(tmp_path / "checkpoint-9")) == ["4", "6", "9", "last"]
    assert left(2) == ["4", "6", "last"]
    assert left(1, str(tmp_path / "checkpoint-4")) == ["4", "6", "last"]
    assert left(1) == ["6", "last"]


# ---- a disk that is full ---------------------------------------------------------------------------------------------


def full(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("writer", ["torch.save", "model", "save_file", "progress", "write_manifest"])
def test_a_write_that_fails_leaves_the_checkpoint_before(tmp_path, monkeypatch, writer):
    class Fill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step != 2:
                return
            if writer == "torch.save":
                monkeypatch.setattr(torch, "save", full)
            elif writer == "model":
                monkeypatch.setattr(model, "save_pretrained", full)
            elif writer == "progress":
                monkeypatch.setattr(Path, "write_text", full)
            else:
                monkeypatch.setattr(checkpoints, writer, full)

    with pytest.raises(CheckpointError) as caught:
        run(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=1, given={"callbacks": [Fill()]})
    assert str(caught.value) == (
        f"checkpoint {tmp_path / 'checkpoint-3'} could not be written ([Errno 28] No space left on device); training "
        f"can go on from {tmp_path / 'checkpoint-2'}"
    )
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert why_torn(tmp_path / "checkpoint-2") is None


# ---- a reward that fails ---------------------------------------------------------------------------------------------


class Reward:
    """`tiny.reward`, until a call of it fails."""

    __name__ = "reward"

    def __init__(self, failing: int | None = None) -> None:
        self.failing, self.calls = failing, 0

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        self.calls += 1
        if self.calls == self.failing:
            raise ValueError("no judge today")
        return tiny.reward(completions)


class Decoded:
    """Counts rollouts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from mdlm_fast.rl import rollout as rollouts

        self.count, decode = 0, rollouts.rollout

        def counted(*arguments: Any) -> Any:
            self.count += 1
            return decode(*arguments)

        monkeypatch.setattr(rollouts, "rollout", counted)


@pytest.mark.parametrize(
    ("rollout", "settings"),
    [
        (3, {}),
        (3, {"save_strategy": "steps", "save_steps": 4}),
        (1, {"logging_steps": 4}),
        (2, {"kind": MDPOTrainer, "temperature": 1.0, "save_strategy": "steps", "save_steps": 1, "logging_steps": 4}),
    ],
)
def test_a_failed_reward_loses_neither_steps_nor_completions(tmp_path, monkeypatch, rollout, settings):
    whole = run(tmp_path / "whole", rewards=Reward(), **settings)
    decoded = Decoded(monkeypatch)
    with pytest.raises(RewardError) as caught:
        run(tmp_path / "failed", rewards=Reward(rollout), **settings)
    steps = 2 * (rollout - 1)
    assert str(caught.value) == (
        f"reward function 'reward' raised ValueError: no judge today. {tmp_path / 'failed' / f'checkpoint-{steps}'} "
        f"keeps the {steps} finished optimizer steps and the completions that were to be scored; mend the function and "
        "go on with train(resume_from_checkpoint=True)"
    )
    assert isinstance(caught.value.__cause__, RewardError) and isinstance(caught.value.__cause__.__cause__, ValueError)
    assert decoded.count == rollout
    mended = Reward()
    resumed = run(tmp_path / "failed", True, rewards=mended, **settings)
    assert decoded.count == 3 and mended.calls == 4 - rollout
    assert without_times(resumed.state.log_history) == without_times(whole.state.log_history)


def test_a_reward_may_fail_twice(tmp_path, monkeypatch):
    decoded = Decoded(monkeypatch)
    for failing in (2, 1):
        with pytest.raises(RewardError, match="checkpoint-2 keeps the 2 finished"):
            run(tmp_path, failing == 1, rewards=Reward(failing))
    assert decoded.count == 2


@pytest.mark.parametrize("changed", [{"data_seed": 7}, {"temperature": 0.7}], ids=str)
def test_completions_of_other_prompts_or_settings_are_not_taken(tmp_path, monkeypatch, changed):
    with pytest.raises(RewardError):
        run(tmp_path, rewards=Reward(2))
    decoded = Decoded(monkeypatch)
    run(tmp_path, True, rewards=Reward(), **changed)
    assert decoded.count == 2


def test_a_reward_that_fails_in_an_evaluation_loses_no_steps(tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 4}
    given = {"eval_dataset": [{"prompt": "w21"}]}
    whole = run(tmp_path / "whole", rewards=Reward(), given=given, **settings)
    with pytest.raises(RewardError, match="checkpoint-3 keeps the 3 finished optimizer steps; mend"):
        run(tmp_path / "failed", rewards=Reward(3), given=given, **settings)
    resumed = run(tmp_path / "failed", True, rewards=Reward(), given=given, **settings)
    losses = [[entry.get("loss") for entry in t.state.log_history if "loss" in entry] for t in (whole, resumed)]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    trainer = tiny.trainer(CJGRPOTrainer, tmp_path / "alone", rewards=Reward(1), given=given)
    with pytest.raises(RewardError, match=r"no judge today$"):
        trainer.evaluate()
    assert not list((tmp_path / "alone").glob("checkpoint-*"))


def test_a_failed_reward_and_a_full_disk_are_both_named(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "write_manifest", full)
    with pytest.raises(RewardError) as caught:
        run(tmp_path, rewards=Reward(2))
    assert "no judge today. what was finished since the start could not be saved (checkpoint" in str(caught.value)
    assert "No space left on device" in str(caught.value)
