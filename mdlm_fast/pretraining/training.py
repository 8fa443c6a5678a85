"""The training loop: resumes, checkpoints, logs and monitors."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .checkpoint import load_newest, save_checkpoint
from .monitor import monitor
from .run import Run
from .stream import PuzzleData

if TYPE_CHECKING:
    from .config import PretrainConfig


def _truncate_metrics(path: Path, step: int) -> None:
    """Drops metrics of steps that the resumed run will do again, and a line that was cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["step"] <= step:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def train(
    config: PretrainConfig,
    folder: Path,
    *,
    checkpoint_every: int = 100,
    log_every: int = 20,
    monitor_every: int = 250,
    stop_after: int | None = None,
    progress: bool = True,
) -> Run:
    """Trains up to ``config.steps``, resuming from the newest sound checkpoint in ``folder``.

    Args:
        folder: holds ``checkpoint-*.bin`` and ``metrics.jsonl`` (one JSON object a line).
        checkpoint_every, log_every, monitor_every: in optimiser steps. Monitoring decodes puzzles; 0 turns it off.
        stop_after: end this process after so many steps (a checkpoint is written), to spread training over runs.
        progress: show a progress bar on standard error; where that is no terminal, a line every ``log_every`` steps.

    Returns:
        The run; ``run.step < config.steps`` when ``stop_after`` ended it early.

    Raises:
        CorruptCheckpointError: the folder has checkpoints and none is sound.
        ValueError: the folder holds a run with other settings.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    folder.mkdir(parents=True, exist_ok=True)
    run = Run(config)
    found = load_newest(folder)
    if found is not None:
        state, problems = found
        for problem in problems:
            _say(f"{problem}; going on from the checkpoint before")
        run.load_state(state)
        _say(f"resumed {folder} at step {run.step}")
    metrics = folder / "metrics.jsonl"
    _truncate_metrics(metrics, run.step)
    data = PuzzleData(config)
    last = config.steps if stop_after is None else min(config.steps, run.step + stop_after)
    recent: list[list[float]] = []
    started = time.perf_counter()
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (progress and console.is_terminal),
    )
    with open(metrics, "a", encoding="utf-8") as log, bar:
        shown = bar.add_task("training", total=config.steps, completed=run.step)
        while run.step < last:
            recent.append(run.train_step(data.batches(run.step)))
            bar.advance(shown)
            record: dict[str, Any] = {}
            if run.step % log_every == 0 or run.step == last:
                countdown, sudoku = (round(float(loss), 5) for loss in np.mean(recent, axis=0))
                rate = round(config.learning_rate_factor(run.step - 1), 5)
                record = {"loss_countdown": countdown, "loss_sudoku": sudoku, "lr_factor": rate}
                recent = []
            if monitor_every and (run.step % monitor_every == 0 or run.step == config.steps):
                record |= monitor(run.snapshot(), data)
            if record:
                record = {"step": run.step, "seconds": round(time.perf_counter() - started, 1), **record}
                log.write(json.dumps(record) + "\n")
                log.flush()
                summary = " ".join(f"{name} {value}" for name, value in record.items())
                bar.update(shown, description=f"countdown {record.get('loss_countdown')}")
                if progress and not console.is_terminal:
                    _say(summary)
            if run.step % checkpoint_every == 0 or run.step == last:
                save_checkpoint(folder, run.step, run.state())
    return run
