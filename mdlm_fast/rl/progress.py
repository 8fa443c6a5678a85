"""The progress of a training run on standard error: a bar on a terminal, a line each log elsewhere."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

#: Of a log, what a line has room for: (key, label, format).
_SHOWN = (
    ("reward", "reward", ".3f"),
    ("kl", "kl", ".4f"),
    ("entropy", "entropy", ".3f"),
    ("step_time", "s a step", ".2f"),
)


class ShowProgress(TrainerCallback):
    """Takes the place of transformers' own bar, which prints every log in full. Only the main process shows it."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = Console(stderr=True) if console is None else console
        self._bar: Progress | None = None
        self._seen: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.console.is_terminal:
            columns = ("training", BarColumn(), MofNCompleteColumn(), "steps", TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[seen]}"), console=self.console)
            self._task = self._bar.add_task("training", total=state.max_steps, completed=state.global_step, seen="")
            self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        if not state.is_world_process_zero or not state.max_steps:  # evaluation before training has its own line
            return
        evaluated = [f"{key} {value:.3f}" for key, value in logs.items() if key == "eval_reward"]
        if "loss" not in logs and not evaluated:
            return
        self._seen |= logs  # rewards are logged only where there was a rollout
        seen = [f"{label} {self._seen[key]:{style}}" for key, label, style in _SHOWN if key in self._seen]
        text = "  ".join(evaluated or seen)
        if self._bar is None or evaluated:
            self.console.print(f"step {state.global_step}/{state.max_steps}  {text}", highlight=False)
        else:
            self._bar.update(self._task, seen=text)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Takes the bar away; also where training ended with an exception."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
