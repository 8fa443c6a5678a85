"""Build the CUDA kernels, hold both GPU backends against the oracles, and measure them: about eight minutes on one GPU.

    python -m bench.gpu_check [--quick] [--only STAGE ...] [--skip STAGE ...] [--out FOLDER] [--dry-run]

Needs torch 2.11 or later, Triton and nvcc, nothing else and no network. Each stage works in processes of its own within
a budget of its own; what a stage finds is written to FOLDER (build/gpu_check) at once, so a later one that fails costs
nothing. Exit status 1: something was wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.gpu_check import parity, report, sanitizer
from bench.gpu_check.build import build
from bench.gpu_check.settings import FOLDER, Settings, prepare_process
from bench.gpu_check.supervise import Outcome, supervise
from bench.gpu_check.worker import run_items

#: Stage -> seconds, full and quick.
BUDGETS = {
    "machine": (30, 20),
    "build": (120, 75),
    "parity": (170, 45),
    "sanitizer": (160, 0),
    "graph": (30, 20),
    "bench": (150, 60),
}
#: Stages that run side by side: what is not timed, and spends most of its time on the CPU.
GROUPS = (("machine",), ("build",), ("parity", "sanitizer"), ("graph",), ("bench",))
LOGS = "gpu_check.log"
TOTAL = (460, 175)  # stages get less where earlier ones took long
LEAST = 20  # seconds of a stage even then
BENCHES = {"bench_score": 0.5, "bench_linear": 0.25, "bench_logprobs": 0.15, "bench_commit": 0.1}  # share of the time


class Check:
    """One run and its results."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.settings = Settings(quick=arguments.quick)
        if arguments.dry_run:
            self.settings = Settings(device="cpu", backends=("reference",), quick=True, dry=True)
        if arguments.backend:
            self.settings = replace(self.settings, backends=tuple(arguments.backend))
        self.results: dict[str, Any] = {
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "quick": arguments.quick,
            "stages": {},
        }
        self.end = time.monotonic() + (600 if arguments.dry_run else TOTAL[arguments.quick])

    def run(self) -> int:
        chosen = self.arguments.only or [s for s in BUDGETS if s not in self.arguments.skip]
        for group in GROUPS:
            with ThreadPoolExecutor(len(group)) as pool:
                list(pool.map(self.stage, [name for name in group if name in chosen]))
            self.write()
        print("\n" + report.short_table(self.results))
        print(f"results in {self.arguments.out}")
        return int(bool(report.failures(self.results)))

    def stage(self, name: str) -> None:
        start = time.monotonic()
        seconds = 60 if self.settings.dry else BUDGETS[name][self.settings.quick]
        try:
            found = getattr(self, name)(min(float(seconds), max(LEAST, self.end - start)))
        except Exception as error:
            found = {}
            self.results.setdefault("stage_errors", {})[name] = f"{type(error).__name__}: {error}"
        took = time.monotonic() - start
        self.results["stages"][name] = {"seconds": round(took, 1), **found}
        print(f"[{name}] {took:.1f} s {found or ''}", flush=True)

    def write(self) -> None:
        """Results so far, and the ends of the workers' logs in one file."""
        try:
            report.write(self.results, self.arguments.out)
        except Exception as error:  # what was measured is worth more than its table
            print(f"the report failed: {type(error).__name__}: {error}")
        logs = [path for path in sorted(FOLDER.glob("*.log")) if path.name != LOGS]
        ends = [f"==> {path.name}\n{path.read_text(errors='replace')[-20_000:]}" for path in logs]
        (self.arguments.out / LOGS).write_text("\n".join(ends))

    def machine(self, seconds: float) -> dict[str, Any]:
        outcome = self._worker("machine", seconds)
        self.results["machine"] = {"results": outcome.results, "errors": outcome.errors}
        for name, result in outcome.results.items():
            print(f"{name}: {result}")
        for name, error in outcome.errors.items():
            self.results.setdefault("stage_errors", {})[name] = error
        return {}

    def build(self, seconds: float) -> dict[str, Any]:
        if self.settings.dry:
            return {"skipped": "no device"}
        self.results["build"] = build(seconds)
        for name, log in self.results["build"]["errors"].items():
            print(f"build: {name}: {log}")
        return {"errors": len(self.results["build"]["errors"])}

    def parity(self, seconds: float) -> dict[str, Any]:
        """Every op of every backend in workers of their own, all at once: most of the time goes to the oracles."""
        parts = [(backend, ops) for backend in self.settings.backends for ops in parity.GROUPS]
        if self.settings.dry:
            parts = [(backend, ("finish_scores", "select_commit_")) for backend in self.settings.backends]

        def run(part: tuple[str, tuple[str, ...]]) -> Outcome:
            backend, ops = part
            settings = replace(self.settings, backends=(backend,), options={"ops": ops})
            return self._worker(
                "parity", seconds, settings, label=f"parity_{backend}_{ops[0]}", environment={"OMP_NUM_THREADS": "1"}
            )

        outcome = Outcome()
        with ThreadPoolExecutor(len(parts)) as pool:
            for part in pool.map(run, parts):
                outcome.add(part)
        self.results["parity"] = {"results": outcome.results, "errors": outcome.errors}
        for backend in self.settings.backends:
            if not any(name.startswith(f"{backend}: ") for name in outcome.results | outcome.errors):
                self.results.setdefault("stage_errors", {})[f"parity of {backend}"] = "no case ran; see the logs"
        return {"cases": len(outcome.results) + len(outcome.errors), "left_out": outcome.left_out}

    def sanitizer(self, seconds: float) -> dict[str, Any]:
        if self.settings.dry or self.settings.quick or sanitizer.find_tool() is None:
            return {"skipped": "no compute-sanitizer here, or no time for it"}
        self.results["sanitizer"] = {}

        def run(tool: str) -> None:
            options = {"ops": sanitizer.TOOLS[tool], "most_cases": sanitizer.MOST_CASES[tool]}
            settings = replace(self.settings, backends=("cuda",), quick=True, options=options)
            outcome = self._worker(
                "sanitizer",
                seconds,
                settings,
                label=tool,
                prefix=sanitizer.command(tool),
                environment=sanitizer.ENVIRONMENT,
            )
            found = sanitizer.errors_found(tool)
            self.results["sanitizer"][tool] = {**found, "cases": len(outcome.results), "worker_errors": outcome.errors}

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(run, sanitizer.TOOLS))
        return {tool: f"{f['cases']} cases, {f['errors']} errors" for tool, f in self.results["sanitizer"].items()}

    def graph(self, seconds: float) -> dict[str, Any]:
        outcome = self._worker("graph", seconds)
        self.results["graph"] = {"results": outcome.results, "errors": outcome.errors}
        return {"captured": len(outcome.results), "left_out": outcome.left_out}

    def bench(self, seconds: float) -> dict[str, Any]:
        total = Outcome()
        self.results["bench"] = {"results": total.results, "errors": total.errors}
        for name, share in BENCHES.items():
            total.add(self._worker(name, seconds * share))
            self.write()
        return {"measured": len(total.results), "left_out": total.left_out}

    def _worker(self, stage: str, seconds: float, settings: Settings | None = None, **keywords: Any) -> Outcome:
        settings = replace(settings or self.settings, seconds=seconds)
        if settings.dry and stage != "machine":  # that one shows that workers start; others save a second each
            outcome = Outcome()
            run_items(stage, settings, outcome.record)
            return outcome
        return supervise(stage, settings, **{"label": stage, "patience": 60.0, **keywords})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about three minutes: fewer cases and sizes")
    parser.add_argument("--only", nargs="*", choices=list(BUDGETS), help="only these stages")
    parser.add_argument("--skip", nargs="*", choices=list(BUDGETS), default=[], help="all but these stages")
    parser.add_argument("--backend", nargs="*", help="instead of cuda and triton")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for gpu_check.json and gpu_check.md")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: the reference on the CPU, tiny sizes")
    check = Check(parser.parse_args(arguments))
    if check.settings.dry:
        prepare_process()  # else only the workers need it
    return check.run()


if __name__ == "__main__":
    sys.exit(main())
