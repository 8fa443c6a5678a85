"""One run: trains, evaluates on held-out puzzles on the way, and writes what it saw.

    python -m bench.learning.run eoser-ass/sudoku/cj-grpo/1e-4/0

A folder a run: log.jsonl grows, the trainer's checkpoints come and go, and result.json is written last. A run that was
stopped goes on from its last whole checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging

import mdlm_fast as mf
from bench.learning.log import Recorder, columns, read_log, rewind
from bench.learning.measure import Rows, accuracy_by_passes, prompts, solved
from bench.learning.runs import BEFORE, LOG_EVERY, METHODS, PASSES_PUZZLES, SAVE_EVERY, Run, select_runs
from mdlm_fast import ops, rl
from mdlm_fast.doctor import cpu_model, package_version
from mdlm_fast.files import whole_file
from mdlm_fast.rl.checkpoints import last_whole_checkpoint
from mdlm_fast.rl.divergence import TrainingDiverged
from mdlm_fast.rl.task_data import task_dataset
from mdlm_fast.tasks import get_task

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "results" / "learning"
MODEL = "builtin:puzzles"


def finished(run: Run, folder: Path = FOLDER) -> dict[str, Any] | None:
    """The result of a run, None when it is not there or is of other settings."""
    path = folder / run.id / "result.json"
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result if result["settings"] == run.settings() else None


def execute(run: Run, folder: Path = FOLDER, *, max_steps: int | None = None, held_out: int | None = None) -> Path:
    """Makes a run, or the rest of it, and returns the path of its result. A run that diverges has one too.

    Args:
        folder: of all runs.
        max_steps, held_out: for a shorter run, evaluated on the first so many held-out puzzles; it never counts as
            finished.
    """
    settings = run.settings()
    if max_steps is not None:
        settings["max_steps"] = max_steps
    if held_out is not None:
        settings["held_out"] = held_out
    where = folder / run.id
    log = where / "log.jsonl"
    prepare_folder(where, settings)
    checkpoint = last_whole_checkpoint(where)
    rewind(log, -1 if checkpoint is None else int(checkpoint.name.rsplit("-", 1)[1]))

    training, validation = prompts(run.task, run.seed)
    test = task_dataset(run.task, "test", held_out)
    model = mf.load_model(MODEL)
    config = rl.RLConfig(output_dir=str(where), **run.fields).eval_decode_config()

    def evaluate() -> dict[str, float]:
        puzzles = {"test": test, "validation": validation}
        return {name: solved(model, run.task, rows, config) for name, rows in puzzles.items()}

    recorder = Recorder(log, evaluate)
    diverged = ""
    if run.method == BEFORE:
        recorder.evaluate(0)
    else:
        try:
            train(run, model, training, where, settings["max_steps"], recorder)
        except TrainingDiverged as error:  # a learning rate that is too high: a result like another
            diverged = str(error)
    records = read_log(log)
    result = {
        "id": run.id,
        "settings": settings,
        "training": columns(records, "train"),
        "evaluation": columns(records, "evaluation"),
        "diverged": diverged,
        "passes": {} if diverged else accuracy_by_passes(run, model, test[:PASSES_PUZZLES]),
        "machine": machine(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    with whole_file(where / "result.json") as path:
        path.write_text(json.dumps(result), encoding="utf-8")
    for old in where.glob("checkpoint-*"):
        shutil.rmtree(old)
    return where / "result.json"


def train(run: Run, model: Any, training: Rows, where: Path, max_steps: int, recorder: Recorder) -> None:
    """Trains a model, from the last whole checkpoint of the folder if there is one."""
    name = METHODS[run.method].trainer
    args = getattr(rl, f"{name}Config")(
        output_dir=str(where),
        max_steps=max_steps,
        logging_steps=LOG_EVERY,
        save_steps=SAVE_EVERY,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
        **run.fields,
    )
    trainer = getattr(rl, f"{name}Trainer")(
        model=model,
        reward_funcs=get_task(run.task).reward,
        args=args,
        train_dataset=training,
        callbacks=[recorder],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=True)


def prepare_folder(where: Path, settings: dict[str, Any]) -> None:
    """Makes a run's folder; one that was begun with other settings is emptied."""
    path = where / "settings.json"
    text = json.dumps(settings)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True)
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def machine() -> dict[str, Any]:
    """Where a run ran, and with what."""
    there = [entry for entry in ops.backend_report() if entry["available"] and entry["name"] != "cuda"]
    backend = next((entry for entry in there if entry["chosen"]), there[0])
    packages = ("torch", "transformers", "accelerate", "numpy")
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "backend": backend["name"],
        "python": platform.python_version(),
        **{name: package_version(name) for name in packages},
    }


def main(argv: list[str] | None = None) -> int:
    """The command of one process."""
    parser = argparse.ArgumentParser(prog="python -m bench.learning.run", description=__doc__)
    parser.add_argument("run", help="id of the run")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where results go (%(default)s)")
    parser.add_argument("--steps", type=int, help="optimizer steps, to try a run out; it does not count as finished")
    parser.add_argument("--held-out", type=int, help="evaluate on the first so many held-out puzzles")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    [run] = [run for run in select_runs([options.run]) if run.id == options.run]
    print(execute(run, options.folder, max_steps=options.steps, held_out=options.held_out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
