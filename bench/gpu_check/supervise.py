"""Workers, watched: what they report is kept, and one that dies or hangs is replaced by another behind that item."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.gpu_check.settings import FOLDER, ROOT, Settings

MAX_WORKERS = 8  # for one stage; then something is wrong beyond single items


@dataclass
class Outcome:
    """What became of a stage or of a part of it."""

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    left_out: int = 0
    seconds: float = 0.0

    def add(self, other: Outcome) -> None:
        self.results.update(other.results)
        self.errors.update(other.errors)
        self.left_out += other.left_out

    def record(self, event: dict[str, Any]) -> None:
        if "result" in event:
            self.results[event["end"]] = event["result"]
        elif "error" in event:
            self.errors[event["end"]] = event["error"]
        self.left_out += event.get("left_out", 0)


def supervise(
    stage: str,
    settings: Settings,
    *,
    label: str,
    patience: float,
    prefix: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
) -> Outcome:
    """Run a stage in workers until its items are through or its time is up.

    Args:
        label: names the log, build/gpu_check/<label>.log.
        patience: seconds without a report after which a worker counts as hung.
        prefix: a command to run the worker under.
        environment: variables for the worker.
    """
    outcome = Outcome()
    start = time.monotonic()
    log = FOLDER / f"{label}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    done: list[str] = []
    for _ in range(MAX_WORKERS):
        left = settings.seconds - (time.monotonic() - start)
        if left <= 0:
            break
        orders = replace(settings, seconds=left, done=tuple(done))
        command = [*prefix, sys.executable, "-m", "bench.gpu_check.worker", stage, orders.dumps()]
        if not _watch(command, {**os.environ, **paths, **(environment or {})}, left, outcome, done, log, patience):
            break
    outcome.seconds = time.monotonic() - start
    return outcome


def _watch(
    command: list[str],
    environment: dict[str, str],
    seconds: float,
    outcome: Outcome,
    done: list[str],
    log: Path,
    patience: float,
) -> bool:
    """One worker, to its end; whether another is needed."""
    before = len(done)
    with log.open("ab") as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    end = time.monotonic() + seconds + patience  # an item begun in time may finish
    current, fault = None, ""
    while True:
        try:
            line = lines.get(timeout=max(0.1, min(patience, end - time.monotonic())))
        except queue.Empty:
            process.kill()
            fault = f"no report for {patience:.0f} s: hung, or far too slow"
            break
        if line is None:
            break
        try:
            event = json.loads(line)
        except ValueError:  # a tool that the worker runs under
            with log.open("a") as text:
                text.write(line)
            continue
        current = event.get("begin")
        if "end" in event:
            done.append(event["end"])
        outcome.record(event)
    status = process.wait()
    if status == 0 and not fault:
        return False
    if current is not None:
        outcome.errors[current] = fault or f"the process ended with status {status}: {last_line(log)}"
        done.append(current)
    elif len(done) == before:
        outcome.errors[log.stem] = fault or f"the worker ended with status {status}: {last_line(log)}"
        return False
    return time.monotonic() < end - patience


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
