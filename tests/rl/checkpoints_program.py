"""Run by test_checkpoints.py: training runs that are killed at many points, and resumed in processes of their own.

Arguments: a folder for results, and the model: "tiny" or "builtin:puzzles". One import serves all processes.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
from transformers import TrainerCallback
from watching import without_times

import mdlm_fast as mf
from mdlm_fast.models import MaskedDiffusionModel
from mdlm_fast.rl import CJGRPOTrainer, backward, checkpoints, manifest
from mdlm_fast.tasks import sudoku_prompt

#: Saved at 3, in the middle of a rollout's two passes, and at 6, between two rollouts; 8 steps of 2 micro-batches.
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_iterations": 2,
    "max_steps": 8,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 3,
    "save_total_limit": 1,
    "decoder": "eoser-ass",
    "diffusion_steps": None,
    "beta": 0.1,
    "sync_ref_model": True,
    "ref_model_sync_steps": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "views_per_backward": "auto",
    "log_completions": True,
    "num_completions_to_print": 0,
}
PUZZLES = ("0401004042103100", "1240301021004000", "2030340100034010", "4010100003004030")
#: Logs that straddle checkpoints.
WIDE = {"logging_steps": 3, "save_steps": 2}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(
    owner: Any,
    name: str,
    number: int,
    act: Callable[..., None],
    *,
    after: bool = False,
    only: Callable[..., bool] = lambda *_, **__: True,
) -> None:
    """Makes the number-th call of a function, of those that `only` counts, act first, or when it is done."""
    original, calls = getattr(owner, name), [0]

    def called(*arguments: Any, **keywords: Any) -> Any:
        if not only(*arguments, **keywords):
            return original(*arguments, **keywords)
        calls[0] += 1
        if calls[0] == number and not after:
            act(*arguments, **keywords)
        result = original(*arguments, **keywords)
        if calls[0] == number and after:
            act(*arguments, **keywords)
        return result

    setattr(owner, name, called)


class DieAt(TrainerCallback):
    """Dies at an event of the loop after so many optimizer steps."""

    def __init__(self, event: str, step: int) -> None:
        setattr(self, event, lambda args, state, control, **_: die() if state.global_step == step else None)


def truncated(_: Any, path: Path, *__: Any) -> None:
    os.truncate(path, path.stat().st_size // 2)
    die()


def half_deleted(folder: Path, **_: Any) -> None:
    for number, path in enumerate(sorted(folder.iterdir())):
        if number % 2:
            path.unlink()
    die()


def dies_on_call(*where: Any, **when: Any) -> Callable[[], list[Any]]:
    def prepare() -> list[Any]:
        on_call(*where, **{"act": lambda *_, **__: die(), **when})
        return []

    return prepare


#: Where a run dies: (what arranges it, checkpoint that is resumed from, whether a torn one is found, settings).
KILLS: dict[str, tuple[Callable[[], list[Any]], int, bool, dict[str, Any]]] = {
    "in a rollout": (dies_on_call(MaskedDiffusionModel, "score_rows", 5), 3, False, {}),
    "between micro-batches": (lambda: [DieAt("on_substep_end", 4)], 3, False, {}),
    "between packs": (dies_on_call(backward, "pack_loss", 16), 3, False, {}),
    "after an update": (lambda: [DieAt("on_optimizer_step", 7)], 6, False, {}),
    "in the first checkpoint": (dies_on_call(checkpoints, "write_manifest", 1), 0, True, {}),
    "after the model file": (dies_on_call(torch, "save", 6), 3, True, {}),
    "in the rollout's file": (dies_on_call(checkpoints, "save_file", 4, act=truncated, after=True), 4, True, WIDE),
    "before the manifest": (dies_on_call(checkpoints, "write_manifest", 2), 3, True, {}),
    "in the manifest": (dies_on_call(Path, "replace", 2, only=lambda _, to: to.name == manifest.MANIFEST), 3, True, {}),
    "while an old one is deleted": (dies_on_call(manifest.shutil, "rmtree", 1, act=half_deleted), 6, False, {}),
    "in a wide logging window": (lambda: [DieAt("on_step_begin", 5)], 4, False, WIDE),
}


def model(name: str) -> Any:
    return tiny.model() if name == "tiny" else mf.load_model(name)


def make(folder: Path, name: str, callbacks: list[Any], settings: dict[str, Any]) -> Any:
    rows: Any = tiny.PROMPTS
    if name != "tiny":
        rows = [sudoku_prompt(puzzle) for puzzle in PUZZLES]
        settings = {"max_completion_length": 12, **settings}  # as many passes as 8 tokens take
    given = {"callbacks": callbacks}
    return tiny.trainer(CJGRPOTrainer, folder, model(name), rows, given=given, **{**SETTINGS, **settings})


def in_child(work: Callable[[], None]) -> int:
    """The exit status of work done in a process of its own; -9 after SIGKILL."""
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def save(result: Any, path: Path) -> None:
    path.write_text(json.dumps(result))


def whole(results: Path, name: str, key: str, settings: dict[str, Any]) -> None:
    trainer = make(results / key, name, [], {**settings, "save_total_limit": None})
    trainer.train()
    save(without_times(trainer.state.log_history), results / f"{key}.json")


def killed(folder: Path, name: str, prepare: Callable[[], list[Any]], settings: dict[str, Any]) -> None:
    make(folder, name, prepare(), settings).train()


def resumed(folder: Path, name: str, settings: dict[str, Any]) -> None:
    trainer = make(folder, name, [], settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train(resume_from_checkpoint=True)
    result = {
        "log": without_times(trainer.state.log_history),
        "steps": trainer.state.global_step - trainer._initial_global_step,
        "warnings": [str(w.message) for w in caught if "torn" in str(w.message)],
        "left": sorted(path.name for path in folder.glob("checkpoint-*")),
    }
    save(result, folder.with_suffix(".json"))


def full_disk(folder: Path, name: str) -> None:
    """No file can grow beyond 16 KiB any more when the second checkpoint is written."""

    class Fill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, resource.RLIM_INFINITY))

    try:
        make(folder, name, [Fill()], {}).train()
    except checkpoints.CheckpointError as error:
        left = sorted(path.name for path in folder.glob("checkpoint-*"))
        torn = manifest.why_torn(folder / "checkpoint-3")
        result = {"message": str(error), "left": left, "torn": torn}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    save(result, folder.with_suffix(".json"))


def main(results: Path, name: str) -> None:
    model(name).model.save_pretrained(results / "once")  # transformers builds tables at the first save
    gc.freeze()
    failed = []
    for key, settings in (("whole", {}), ("whole wide", WIDE)):
        if in_child(lambda key=key, settings=settings: whole(results, name, key, settings)):
            failed.append(key)
    for case, (prepare, _, _, settings) in KILLS.items():
        folder = results / case
        status = in_child(lambda f=folder, p=prepare, s=settings: killed(f, name, p, s))
        shutil.rmtree(folder / "completions", ignore_errors=True)
        if status != -signal.SIGKILL or in_child(lambda f=folder, s=settings: resumed(f, name, s)):
            failed.append(f"{case} ({status})")
    if in_child(lambda: full_disk(results / "full disk", name)):
        failed.append("full disk")
    gc.unfreeze()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
