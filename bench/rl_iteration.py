"""A CJ-GRPO iteration (rollout and updates) of our trainer against bench/rl_plain.py, in seconds and in peak memory.

First both sides compute the loss and gradients of one trajectory, with float32 log-softmax on the plain side, and must
agree. Then, for every number of steps, with the LM head trained (all weights) and frozen (LoRA on the layers):

- times: both sides in one process, in turns, so that a slow spell of the machine meets both; medians and quartiles of
  wall-clock seconds, and processor seconds of all threads, which a busy machine disturbs less;
- peaks: each side in a process of its own, the most memory in use during an iteration beyond weights, gradients and
  optimizer state, which are there before it begins. On the CPU that is the resident set, which the kernel records.

    python -m bench.rl_iteration                          # the table
    python -m bench.rl_iteration --write                  # and docs/rl_speed.json, docs/rl_speed.md
    python -m bench.rl_iteration --device cuda --dtype bfloat16 --rounds 5 --write
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from shutil import which
from typing import Any

import torch
import transformers
from rich.console import Console
from torch import Tensor

from bench import rl_plain
from bench.linear import MIB, resident
from bench.rl_report import markdown, show
from bench.rl_sides import GENERATED, Case, OurSide, PlainSide
from mdlm_fast import ops

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "docs" / "rl_speed.json", ROOT / "docs" / "rl_speed.md"
TOLERANCE = 1e-4


# ---- agreement -----------------------------------------------------------------------------------------------------


def agreement(case: Case) -> float:
    """The largest difference of losses and gradients on one trajectory, relative to the largest entry of each tensor.

    Both updates of an iteration are compared, the second after a large step, so with ratios that are not 1.
    """
    case = replace(case, iterations=2, learning_rate=1e-3, max_grad_norm=0.0, dtype="float32")
    ours = OurSide(case, 1)
    trainer = ours.trainer
    differences: list[float] = []
    kept: dict[str, Any] = {}

    def compare(iteration: int) -> None:
        buffer = kept["buffer"]
        steps = buffer.batch.trajectory.steps
        config = case.plain(steps=steps, dtype=torch.float32)
        if iteration == 0:
            kept["states"] = list(buffer.batch.trajectory)
            kept["old"] = rl_plain.trajectory_logps(ours.model, plain_rollout(kept["states"]), config)
        trajectory = plain_rollout(kept["states"])
        reference = rl_plain.reference_logps(ours.model, trajectory, config)
        twin = copy.deepcopy(ours.model)
        twin.zero_grad()
        loss = rl_plain.trajectory_loss(twin, trajectory, buffer.advantages, kept["old"], reference, config)
        loss.backward()
        differences.append(abs(float(trainer.losses[-1]) - loss.item()))
        named = dict(ours.model.named_parameters())
        for name, parameter in twin.named_parameters():
            if parameter.requires_grad:
                differences.append(relative_difference(named[name].grad, parameter.grad))

    class AtUpdate(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if trainer.buffer is not None:
                kept["buffer"] = trainer.buffer
            compare(state.global_step % 2)

    trainer.add_callback(AtUpdate())
    ours.run(lambda _: None, lambda _: None)
    return max(differences)


def plain_rollout(states: list[Tensor]) -> rl_plain.PlainRollout:
    """The clones and masks that the plain side would have kept of these states."""
    revealed = [(before != after)[:, -GENERATED:] for before, after in pairwise(states)]
    return rl_plain.PlainRollout(states, revealed)


def relative_difference(value: Tensor | None, expected: Tensor | None) -> float:
    assert value is not None and expected is not None
    return float((value - expected).abs().max() / expected.abs().max())


# ---- times ---------------------------------------------------------------------------------------------------------


class Clock:
    """Wall-clock seconds, and processor seconds of all threads, which a busy machine disturbs less."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.start()

    def start(self) -> None:
        self._started = self._now()

    def stop(self) -> tuple[float, float]:
        """Seconds since `start`."""
        wall, processor = self._now()
        return wall - self._started[0], processor - self._started[1]

    def _now(self) -> tuple[float, float]:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


def times(case: Case, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of each round, after a short iteration of both to warm up."""
    found: dict[str, list[tuple[float, float]]] = {"plain": [], "ours": []}
    plain, ours, clock = PlainSide(case), OurSide(case, rounds), Clock(case.device)

    def begin(number: int) -> None:
        clock.start()
        plain.run(steps=None if number else 2)
        if number:
            found["plain"].append(clock.stop())
        clock.start()

    def end(number: int) -> None:
        if number:
            found["ours"].append(clock.stop())

    ours.run(begin, end)
    return found


# ---- peaks ---------------------------------------------------------------------------------------------------------


class PeakMeter:
    """The most memory in use since `start`, beyond what was in use then and the gradients that were not there yet."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"

    def start(self, model: torch.nn.Module) -> None:
        gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad and p.grad is None)
        gc.collect()
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._base = torch.cuda.memory_allocated() + gradients
            return
        ctypes.CDLL(None).malloc_trim(0)  # or memory freed before would be used again unseen
        self._base = resident("VmRSS") + gradients
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark

    def stop(self) -> int:
        """Bytes."""
        peak = torch.cuda.max_memory_allocated() if self._cuda else resident("VmHWM")
        return int(peak) - self._base


def peak_here(side: str, case: Case) -> int:
    """Bytes at the peak of one iteration of one side in this process, after a short iteration to warm up."""
    meter = PeakMeter(case.device)
    if side == "plain":
        plain = PlainSide(case)
        plain.run(steps=2)
        plain.optimizer.zero_grad()
        meter.start(plain.model)
        plain.run()
        return meter.stop()
    ours = OurSide(case, 1)
    found: list[int] = []
    ours.run(
        lambda number: meter.start(ours.model) if number else None,
        lambda number: found.append(meter.stop()) if number else None,
    )
    return found[0]


def peak(side: str, case: Case, threads: int) -> int:
    """`peak_here` in a new process."""
    command = [sys.executable, "-m", "bench.rl_iteration", "--child", side, json.dumps(asdict(case))]
    done = subprocess.run([*command, "--threads", str(threads)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring the peak of {side} failed:\n{done.stderr[-3000:]}")
    return int(done.stdout.split()[-1])


# ---- the run -------------------------------------------------------------------------------------------------------


def environment(device: str) -> dict[str, Any]:
    """What the numbers depend on."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout if which("git") else ""
    name = torch.cuda.get_device_name() if device == "cuda" else (cpu.group(1) if cpu else platform.machine())
    return {
        "device": device,
        "name": name,
        "threads": torch.get_num_threads(),
        "backend": ops.available_backends("linear_token_logprobs", device)[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit.strip() or "unknown",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def measure(case: Case, rounds: int, threads: int) -> dict[str, Any]:
    """Times and peaks of one case."""
    found = {**asdict(case), "peak_iterations": case.iterations}
    for side, seconds in times(case, rounds).items():
        wall, processor = zip(*seconds, strict=True)
        low, middle, high = quartiles(wall)
        found[side] = {
            "seconds": middle,
            "quartiles": [low, high],
            "processor_seconds": statistics.median(processor),
            "rounds": seconds,
            "peak_mib": peak(side, case, threads) / MIB,
        }
    plain, ours = found["plain"], found["ours"]
    found["speedup"] = plain["seconds"] / ours["seconds"]
    found["processor_speedup"] = plain["processor_seconds"] / ours["processor_seconds"]
    found["memory_ratio"] = plain["peak_mib"] / ours["peak_mib"]
    return found


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def kind(run: dict[str, Any]) -> tuple[Any, ...]:
    """Device and settings of a run."""
    return (run["environment"]["name"], *(run[name] for name in ("dtype", "iterations", "views", "checkpointing")))


def write(run: dict[str, Any]) -> None:
    """Puts the run in the place of the one with the same device and settings, and renders the page."""
    runs = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    runs = [other for other in runs if kind(other) != kind(run)] + [run]
    RESULTS.write_text(json.dumps(runs, indent=1) + "\n")
    PAGE.write_text(markdown(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--head", nargs="+", choices=("trained", "frozen"), default=["trained", "frozen"])
    parser.add_argument("--rounds", type=int, default=2, help="timed iterations of each side")
    parser.add_argument("--iterations", type=int, default=2, help="updates on a rollout")
    parser.add_argument("--views", type=int, default=0, help="steps whose graphs live at a time (ours); 0: automatic")
    parser.add_argument("--checkpointing", choices=("plain", "both", "none"), default="plain", help="whose layers")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads")
    parser.add_argument("--write", action="store_true", help="write docs/rl_speed.json and docs/rl_speed.md")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child is not None:
        print(peak_here(options.child[0], Case(**json.loads(options.child[1]))))
        return
    console = Console(stderr=True)
    common = {"dtype": options.dtype, "device": options.device, "iterations": options.iterations}
    common |= {"views": options.views, "checkpointing": options.checkpointing}
    run: dict[str, Any] = {"environment": environment(options.device), **common, "agreement": {}, "cases": []}
    for head in options.head:
        worst = agreement(Case(head, 4, **common))
        console.print(f"head {head}: losses and gradients differ by {worst:.1e} of the largest entry")
        if not worst < TOLERANCE:
            sys.exit(f"the two sides do not compute the same update (allowed: {TOLERANCE:.0e})")
        run["agreement"][head] = worst
    for steps in options.steps:
        for head in options.head:
            with console.status(f"head {head}, {steps} steps"):
                run["cases"].append(measure(Case(head, steps, **common), options.rounds, options.threads))
            if options.write:  # after every case: a run takes long
                write(run)
    show(run)


if __name__ == "__main__":
    main()
