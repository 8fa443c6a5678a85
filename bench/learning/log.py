"""The log of a run: JSON lines that survive a crash, and the callback that writes them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from bench.learning.runs import EVALUATE_EVERY
from mdlm_fast.files import whole_file

#: What is kept of the trainer's log, under its keys.
LOGGED = ("reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "loss", "grad_norm")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; a last line that a crash cut off is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def rewind(path: Path, step: int) -> None:
    """Drops what a log holds beyond an optimizer step."""
    kept = [record for record in read_log(path) if record["step"] <= step]
    with whole_file(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")


def columns(records: list[dict[str, Any]], kind: str) -> dict[str, list[float]]:
    """The records of a kind as columns, four significant digits."""
    chosen = [record for record in records if record["kind"] == kind]
    names = [name for name in (chosen[0] if chosen else {}) if name != "kind"]
    return {name: [float(f"{record[name]:.4g}") for record in chosen] for name in names}


class Recorder(TrainerCallback):
    """Writes the log of a run, evaluations included.

    Seconds are of training alone (rollouts, rewards, updates): `seconds` by the clock, `cpu_seconds` of this process,
    which other work on the machine lengthens less. Both go on from the checkpoint that a run resumes from.

    path: of the log, already cut back to that checkpoint. evaluate: gives what an evaluation is to record.
    """

    def __init__(self, path: Path, evaluate: Callable[[], dict[str, float]]) -> None:
        self.path, self._evaluate = path, evaluate
        self.seconds = self.cpu_seconds = 0.0
        if records := read_log(path):
            self.seconds, self.cpu_seconds = records[-1]["seconds"], records[-1]["cpu_seconds"]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self.evaluate(0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds += time.perf_counter() - self._began[0]
        self.cpu_seconds += time.process_time() - self._began[1]
        if state.global_step % EVALUATE_EVERY == 0:
            self.evaluate(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "reward" in logs:
            self.write("train", state.global_step, {name: float(logs[name]) for name in LOGGED if name in logs})

    def evaluate(self, step: int) -> None:
        """Evaluates and writes what came out."""
        self.write("evaluation", step, self._evaluate())

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Appends a line."""
        record = {"kind": kind, "step": step, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds, **values}
        with open(self.path, "a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")
