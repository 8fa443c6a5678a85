"""What the first training run of docs/rl.md prints: the commands are run, and their output becomes docs/first_run.json.

python -m bench.first_run      # some three minutes on one core
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mdlm_fast.files import whole_file

from .harness.machine import environment

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "first_run.json"
TASKS = ("sudoku", "countdown")
TRAIN = "mdlm-fast train --preset cj-grpo --model builtin:puzzles --task {task}"
EVALUATE = "mdlm-fast eval {task} -m runs/cj-grpo-{task}/model -p eoser-ass"
SUMMARY = re.compile(r"accuracy ([\d.]+)% -> ([\d.]+)%.*; (\d+) optimizer steps in (\d+) s;")


def main(path: Path = RESULTS) -> None:
    """Runs both tasks on one thread, in a folder of their own, and writes the results file."""
    runs = {}
    with TemporaryDirectory() as folder:
        for task in TASKS:
            print(f"training on {task} ...", file=sys.stderr)
            output = printed(TRAIN.format(task=task), Path(folder))
            evaluated = json.loads(printed(EVALUATE.format(task=task) + " --json", Path(folder))[-1])
            runs[task] = {"lines": output, **summary(output[-1]), "evaluated": evaluated["accuracy"]}
    content = {"command": TRAIN, "runs": runs, "environment": environment("cpu") | {"threads": 1}}
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def printed(command: str, folder: Path) -> list[str]:
    """Lines that a command prints, on standard error and standard output, with one thread and no terminal.

    Raises:
        RuntimeError: it failed.
    """
    words = [sys.executable, "-m", "mdlm_fast.cli", *command.split()[1:]]
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=folder, env=os.environ | one_thread, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stdout}")
    return [line.rstrip() for line in done.stdout.splitlines() if line.strip()]


def summary(line: str) -> dict[str, Any]:
    """Facts of the last line: "before" and "after" (accuracies in per cent), "steps", "seconds".

    Raises:
        ValueError: it is no such line.
    """
    found = SUMMARY.search(line)
    if found is None:
        raise ValueError(f"{line!r} does not say what was learned")
    return {"before": float(found[1]), "after": float(found[2]), "steps": int(found[3]), "seconds": int(found[4])}


if __name__ == "__main__":
    main()
