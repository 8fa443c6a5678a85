"""Results as a machine might have measured them, for tests of the report: no benchmark is run."""

from __future__ import annotations

import math
import random
from typing import Any

from mdlm_fast.bench.harness.results import Record, Results, Side
from mdlm_fast.bench.harness.spread import Spread

CPU = "Example CPU 9000 (R) @ 2.10GHz, 2 threads"
GPU = "Example GPU 80GB"
ROWS, VOCABULARIES = (1, 8, 32, 128, 512), (1_000, 32_000, 126_464, 151_936, 262_144)
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
#: op, variant: (passes over memory of ours, operations an element, baselines and their passes)
OPS: dict[tuple[str, str], tuple[float, float, dict[str, float]]] = {
    ("score_rows", "token, log-prob"): (
        1.15,
        4,
        {"LLaDA": 6.1, "EOSER/CJ-GRPO rollout": 7.4, "Fast-dLLM": 21.0, "dInfer, torch.compile": 1.9},
    ),
    ("score_rows", "all five"): (1.3, 7, {"dInfer, torch.compile": 2.4, "Dream": 60.0}),
    ("score_rows", "T=0.7"): (1.8, 12, {"LLaDA": 75.0, "EOSER/CJ-GRPO rollout": 18.0}),
    ("token_logprobs", "forward + backward"): (3.2, 6, {"TRL": 6.0, "log_softmax + gather": 8.8}),
}


def spread(median: float, noise: random.Random, count: int = 11) -> Spread:
    """Quartiles a few per cent around the median."""
    low, high = (abs(noise.gauss(0, 0.02)) for _ in range(2))
    return Spread(median, median * (1 - low), median * (1 + high), count)


def exact(seconds: float, ratio: float | None = None) -> Side:
    """A side whose rounds all took the same."""
    return Side(Spread(seconds, seconds, seconds, 3), None if ratio is None else Spread(ratio, ratio, ratio, 3))


def record(**sides: Side) -> Record:
    """A small cell of score_rows with these sides; "_" stands for a space in a name."""
    named = {name.replace("_", " "): side for name, side in sides.items()}
    return Record("kernels", {"op": "score_rows", "rows": 4}, named, {"bytes": 8e6, "operations": 2e7})


def environment(machine: str, device: str, date: str) -> dict[str, Any]:
    return {
        "machine": machine,
        "device": device,
        "cpu": "Example CPU 9000 (R) @ 2.10GHz",
        "cores": 2,
        "threads": 2,
        "cache_bytes": 33_554_432,
        "memory_bytes": 8_200_000_000,
        "instructions": "AVX512",
        "backend": "cpp" if device == "cpu" else "cuda",
        "python": "3.12.1",
        "system": "Linux 6.1",
        "packages": {"torch": "2.13.0", "numpy": "2.4.0"},
        "commit": "abc1234",
        "date": date,
        "load": 0.1,
    }


def sides(seconds: dict[str, float], noise: random.Random) -> dict[str, Side]:
    """ "ours" first; ratios against it."""
    return {
        name: Side(
            spread(value, noise),
            None if name == "ours" else spread(value / seconds["ours"], noise),
            None if name == "ours" else "equal tokens, log-probs to 3e-7",
        )
        for name, value in seconds.items()
    }


def kernels(full: bool = False, speed: float = 10e9) -> list[Record]:
    """Ceilings, a control, scoring and linear ops; losses, a side extrapolated, one that does not fit.

    Args:
        speed: bytes a second of reading memory.
    """
    noise = random.Random(1)
    found = [
        Record("kernels", {"op": "read", "threads": n}, {"ceiling": Side(spread(0.013 / n, noise))}, {"bytes": 0.13e9})
        for n in (1, 2)
    ]
    for dtype, rate in (("float32", 1.4e11), ("bfloat16", 9e11), ("float16", 3e11)):
        ceiling = {"ceiling": Side(spread(2**31 / rate, noise))}
        case = {"op": "matrix product", "dtype": dtype, "threads": 2}
        found.append(Record("kernels", case, ceiling, {"operations": float(2**31)}))
    control = {"ours": Side(spread(8e-4, noise)), "ours again": Side(spread(8e-4, noise), spread(1.0, noise))}
    case = {"op": "score_rows", "variant": "against itself", "dtype": "bfloat16", "rows": 32, "vocab": 126_464}
    found.append(Record("kernels", case, control))
    for (op, variant), (passes, operations, others) in OPS.items():
        for dtype, rows, vocab in shapes(full):
            elements, fixed = rows * vocab, 2e-5
            read = BYTES[dtype] * elements / speed
            seconds = {"ours": fixed + passes * read, "read": 2e-6 + read}
            seconds["ours, 1 thread"] = fixed + 1.85 * passes * read
            seconds |= {name: 1.5e-5 + factor * read for name, factor in others.items()}
            record = Record(
                "kernels",
                {"op": op, "variant": variant, "dtype": dtype, "rows": rows, "vocab": vocab},
                sides(seconds, noise),
                {"bytes": float(BYTES[dtype] * elements), "operations": operations * elements},
            )
            record.sides["ours"].peak_bytes = 40_000
            for name in others:
                record.sides[name].peak_bytes = 6 * elements
            if rows == 512 and "LLaDA" in others:
                record.sides["LLaDA"].extrapolated_from = "64 of 512 rows"
            found.append(record)
    for rows in ROWS:
        work = 2.0 * rows * 256 * 126_464
        seconds = {"ours": 6e-3 + work / 3e11, "LLaDA": 9e-3 + work / 2e11, "library GEMM alone": 5e-3 + work / 8e11}
        seconds |= {"library GEMM + ours": 6.5e-3 + work / 5e11, "ours, 1 thread": 8e-3 + work / 1.6e11}
        case = {"op": "linear_score_rows", "variant": "token, log-prob", "dtype": "bfloat16", "rows": rows}
        case |= {"vocab": 126_464, "hidden": 256}
        record = Record("kernels", case, sides(seconds, noise), {"bytes": 2.0 * 256 * 126_464, "operations": work})
        if rows == 512:
            record.sides[
                "library GEMM + ours"
            ].reason = "the library's product uses matrix instructions that ours lacks"
            record.sides["LLaDA"] = Side(verdict="does not fit: needs 19.4 GB")
        found.append(record)
    for batch, length in ((1, 64), (8, 256), (64, 1024)):
        seconds = {"ours": 4e-5 + 2e-9 * batch * length, "LLaDA": 3e-5 + 1.1e-5 * batch}
        record = Record(
            "kernels",
            {"op": "select_commit_", "variant": "quota", "batch": batch, "length": length},
            sides(seconds, noise),
            {"bytes": 20.0 * batch * length},
        )
        record.sides["LLaDA"].reason = (
            "40 to 50 µs of each call are checks of arguments in Python" if batch == 1 else None
        )
        found.append(record)
    return found


def shapes(full: bool) -> list[tuple[str, int, int]]:
    """The cross of the small set or the whole product of the full one."""
    if full:
        return [(dtype, rows, vocab) for dtype in BYTES for rows in ROWS for vocab in VOCABULARIES]
    cross = {("bfloat16", rows, 126_464) for rows in ROWS} | {("bfloat16", 32, vocab) for vocab in VOCABULARIES}
    return sorted(cross | {("float32", 32, 126_464), ("float16", 32, 126_464)})


def decode() -> list[Record]:
    """Six systems at batch 1 and 4, LLaDA along every axis."""
    noise = random.Random(2)
    systems = {"LLaDA": (4.4, "block"), "EOSER/CJ-GRPO rollout": (5.2, "canvas"), "Fast-dLLM": (3.1, "block")}
    systems |= {"dInfer, torch.compile": (1.3, "block"), "Dream": (6.4, "canvas"), "MDPO": (8.0, "canvas")}
    cells = [(name, batch, 64, layout, 0.0, 126_464) for name, (_, layout) in systems.items() for batch in (1, 4)]
    cells += [("LLaDA", 16, 64, "block", 0.0, 126_464), ("LLaDA", 1, 64, "canvas", 0.0, 126_464)]
    cells += [("LLaDA", 1, generated, "block", 0.0, 126_464) for generated in (128, 256)]
    cells += [("LLaDA", 1, 64, "block", 0.7, 126_464), ("LLaDA", 1, 64, "block", 0.0, 1_024)]
    found = []
    for name, batch, generated, layout, temperature, vocab in cells:
        ours = (0.006 + 0.004 * batch * generated / 64) * generated / 4
        factor = systems[name][0] * (6 if temperature else 1) * (1 if vocab > 2_000 else 0.21)
        case = {"decoder": name, "batch": batch, "generated": generated, "prompt": 32, "layout": layout}
        case |= {"temperature": temperature, "vocab": vocab, "steps": generated // 4}
        record = Record(
            "decode", case, sides({"ours": ours, name: factor * ours}, noise), {"tokens": batch * generated}
        )
        for side, total in zip(record.sides.values(), (ours, factor * ours), strict=True):
            side.figures = {
                "forwards": generated // 4,
                "tokens_per_forward": 4.0 * batch,
                "tokens_per_second": batch * generated / total,
                "latency_seconds": total,
                "step_seconds": total / (generated / 4),
                "outside_share": 1 - 0.45 * min(1.0, ours / total),
            }
        if generated == 256:
            record.sides[name].extrapolated_from = "4 of 64 steps"
        found.append(record)
    return found


def quality() -> list[Record]:
    """Curves of eleven decoders on two tasks."""
    found = []
    names = ["LLaDA", "LLaDA, blocks of 4", "random order", "EOSER", "ASS", "RCR", "Fast-dLLM, threshold"]
    names += ["Fast-dLLM, factor", "entropy bound", "Dream, entropy", "Dream, margin"]
    for task, level in (("sudoku", 0.95), ("countdown", 0.5)):
        for index, name in enumerate(names):
            for steps in (24, 8, 4, 2) if name != "ASS" else (4,):
                accuracy = level * (1 - math.exp(-steps / (3 + index / 3)))
                figures: dict[str, Any] = {"accuracy": accuracy, "puzzles": 64, "forwards": float(steps)}
                figures |= {"accuracy_low": max(0.0, accuracy - 0.09), "accuracy_high": min(1.0, accuracy + 0.08)}
                figures |= {"tokens_per_forward": 24 / steps, "batch_64_puzzles_per_second": 900 / steps}
                case = {"decoder": name, "task": task, "setting": f"steps={steps}", "temperature": 0.0}
                found.append(Record("quality", case, {"ours": Side(figures=figures)}, {"tokens": 24}))
    return found


def rl() -> list[Record]:
    """CJ-GRPO along each axis; with eight updates the released way is extrapolated."""
    noise = random.Random(3)
    centre = {"method": "CJ-GRPO", "head": "trained", "steps": 8, "batch": 4, "generated": 32, "updates": 2}
    changes: list[dict[str, int]] = [{}, {"steps": 4}, {"batch": 2}, {"generated": 64}, {"updates": 4}]
    found = []
    for change in changes:
        case = {**centre, **change, "dtype": "float32"}
        size = float(case["batch"]) * case["generated"] / 128
        ours = {"rollout": 0.02 * case["steps"] * size, "rewards": 0.01, "old log-probs": 0.0}
        ours |= {
            "forward + backward": 0.09 * case["steps"] * size * case["updates"],
            "optimizer": 0.04 * case["updates"],
        }
        theirs = {phase: 4.0 * seconds for phase, seconds in ours.items()} | {
            "rewards": 0.01,
            "old log-probs": 0.8 * size,
        }
        record = Record(
            "rl", case, sides({"ours": sum(ours.values()), "CJ-GRPO as released": sum(theirs.values())}, noise)
        )
        for side, phases, peak in zip(record.sides.values(), (ours, theirs), (0.3e9, 2.9e9), strict=True):
            side.figures, side.peak_bytes = {"phases": phases}, round(peak * size)
        if case["updates"] == 4:
            record.sides["CJ-GRPO as released"].extrapolated_from = "2 of 8 steps"
        found.append(record)
    return found


def results(*, full: bool = False, gpu: bool = False) -> Results:
    """All four suites on the CPU, and kernels on a GPU too."""
    made = Results()
    run = made.start_run(environment(CPU, "cpu", "2026-01-02 03:04"))
    for record in [*kernels(full), *decode(), *quality(), *rl()]:
        made.put(record, run)
    if gpu:
        run = made.start_run(environment(GPU, "cuda", "2026-01-03 03:04"))
        for record in kernels(full, speed=2e12):
            record.sides.pop("ours, 1 thread", None)
            made.put(record, run)
    return made
