"""Runs a recipe: model, data, training, accuracy before and after, and the trained model in a folder."""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PrinterCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mdlm_fast.files import whole_file
from mdlm_fast.models import MaskedDiffusionModel, load_model, save_model
from mdlm_fast.rl.checkpoints import last_whole_checkpoint
from mdlm_fast.rl.config import RLConfig
from mdlm_fast.rl.lora import lora_config
from mdlm_fast.rl.plan import build_config, training_rows
from mdlm_fast.rl.progress import ShowProgress
from mdlm_fast.rl.recipe import Recipe
from mdlm_fast.rl.task_data import task_dataset
from mdlm_fast.rl.trainer import MaskedDiffusionTrainer
from mdlm_fast.tasks import get_task
from mdlm_fast.tasks.evaluation import build_prompts

RECIPE = "recipe.yaml"


def run(
    recipe: Recipe,
    output_dir: str | Path,
    *,
    resume: bool = False,
    evaluate: bool = True,
    eval_every: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains.

    Args:
        output_dir: gets checkpoints, the recipe, the log (trainer_state.json) and the trained model.
        resume: go on from the last whole checkpoint there; from the start if there is none.
        evaluate: measure the accuracy on held-out problems before and after, where there are any.
        eval_every: and every so many optimizer steps.
        progress: show it on standard error.

    Returns:
        Facts of the run: "accuracy_before" and "accuracy_after" (None without evaluation), "optimizer_steps",
        "seconds", "model_dir" (for `load_model`), "adapter_dir" (None without LoRA), ...

    Raises:
        ValueError, TypeError: settings that cannot work, before training. FileNotFoundError: no such model or data.
        FileExistsError: output_dir holds another run. KeyboardInterrupt: after a message that says how to go on.
    """
    folder = Path(output_dir)
    changes = {} if eval_every is None else {"eval_strategy": "steps", "eval_steps": eval_every}
    config = build_config(recipe, folder, disable_tqdm=True, **changes)
    _check_folder(folder, resume, config.max_steps)
    trainer = build_trainer(recipe, config, need_eval=eval_every is not None)
    trainer.get_train_dataloader()  # says so if there are too few prompts, before anything is decoded
    main = trainer.is_world_process_zero()
    if main:
        _write_recipe(recipe, folder, resume)
    trainer.remove_callback(PrinterCallback)
    shown = ShowProgress()
    if progress:
        trainer.add_callback(shown)
    evaluate = evaluate and trainer.eval_dataset is not None
    before = _accuracy(trainer) if evaluate else None
    if main and progress and before is not None:
        print(f"accuracy before: {100 * before:.1f}%", file=sys.stderr)
    began = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=resume)
    except KeyboardInterrupt:
        if main:
            shown.stop()
            print(f"\n{_how_to_go_on(trainer, folder)}", file=sys.stderr)
        raise
    finally:
        shown.stop()
    seconds = time.perf_counter() - began
    after = _accuracy(trainer) if evaluate else None
    trainer.save_state()
    return {
        "preset": recipe.preset,
        "model": recipe.model,
        "task": recipe.task,
        "optimizer_steps": trainer.state.global_step,
        "seconds": round(seconds, 2),
        "accuracy_before": before,
        "accuracy_after": after,
        "output_dir": str(folder),
        **_save(trainer, folder),
    }


def build_trainer(recipe: Recipe, config: RLConfig, *, need_eval: bool = False) -> MaskedDiffusionTrainer:
    """Loads the model onto this process's device, makes the data sets, and makes the trainer.

    need_eval: held-out problems must be there.
    """
    model = load_model(recipe.model, device=config.device, dtype=recipe.dtype)
    if model.tokenizer is None:
        raise ValueError(f"model {recipe.model!r} has no tokenizer, so it cannot read {recipe.task} problems")
    rows = training_rows(recipe, config)
    held_out = None
    if recipe.eval_data is not None or get_task(recipe.task).test_rows is not None:
        held_out = task_dataset(recipe.task, "test", recipe.eval_prompts, data=recipe.eval_data)
    elif need_eval:
        raise ValueError(f"--eval-every needs held-out problems: give a file of {recipe.task} problems as --eval-data")
    adapter = recipe.adapter()
    return recipe.trainer_class(
        model=model,
        reward_funcs=[get_task(recipe.task).reward],
        args=config,
        train_dataset=_with_prompts(model, recipe.task, rows),
        eval_dataset=None if held_out is None else _with_prompts(model, recipe.task, held_out),
        peft_config=None if adapter is None else lora_config(model, **adapter),
    )


def _with_prompts(model: MaskedDiffusionModel, task: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the prompts that `mdlm_fast.tasks.evaluate` gives this model."""
    prompts = build_prompts(model, get_task(task), rows)
    return [{**row, "prompt": prompt} for row, prompt in zip(rows, prompts, strict=True)]


def _accuracy(trainer: MaskedDiffusionTrainer) -> float:
    """Share of the held-out problems solved, by the evaluation's decoder: the tasks' rewards are 0 or 1."""
    return float(trainer.evaluate()["eval_reward"])


def _check_folder(folder: Path, resume: bool, max_steps: int) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"output_dir {folder} is a file; give a folder")
    if not resume and any(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")):
        raise FileExistsError(
            f"{folder} holds the checkpoints of a run: go on with --resume, or give another --output-dir"
        )
    last = last_whole_checkpoint(folder) if resume else None
    if last is not None and 0 < max_steps <= int(last.name.rpartition("-")[2]):  # transformers would take one more step
        raise ValueError(f"the run in {folder} is finished, {last} is its end; raise max_steps to train on")


def _write_recipe(recipe: Recipe, folder: Path, resume: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text, path = recipe.to_yaml(), folder / RECIPE
    if resume and path.is_file() and path.read_text(encoding="utf-8") != text:
        print(f"mdlm-fast: warning: the settings differ from those the run began with, {path}", file=sys.stderr)
        return
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _how_to_go_on(trainer: MaskedDiffusionTrainer, folder: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        last = last_whole_checkpoint(folder)
    stopped = f"stopped after {trainer.state.global_step} of {trainer.state.max_steps} optimizer steps"
    if last is None:
        return f"{stopped}, before the first checkpoint (save_steps={trainer.args.save_steps:g}); nothing to go on from"
    return f"{stopped}; the same command with --resume goes on from {last}"


def _save(trainer: MaskedDiffusionTrainer, folder: Path) -> dict[str, str | None]:
    """Writes the trained model, with an adapter merged into it, and the adapter."""
    module = trainer.policy.model
    if not isinstance(module, PeftModel):
        trainer.save_model(str(folder / "model"))
        return {"model_dir": str(folder / "model"), "adapter_dir": None}
    trainer.save_model(str(folder / "adapter"))
    if trainer.is_fsdp_enabled:  # merging needs whole weights
        return {"model_dir": None, "adapter_dir": str(folder / "adapter")}
    if trainer.is_world_process_zero():
        save_model(trainer.policy.with_module(module.merge_and_unload()), folder / "model")
    return {"model_dir": str(folder / "model"), "adapter_dir": str(folder / "adapter")}
