"""The results of bench/rl_iteration.py as a table on the terminal and as a page of the documentation."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = ("head", "S", "plain", "ours", "faster", "in processor time", "plain peak", "ours peak", "smaller")
#: What the project promises at S = 16: times faster, times less memory.
GOALS = (4.0, 8.0)
CHECKPOINTING = {"plain": "on the plain side, as released", "both": "on both sides", "none": "on neither side"}

INTRODUCTION = """\
# A CJ-GRPO iteration against the released trainers' way of working

Written by `python -m bench.rl_iteration --write`. An iteration decodes 4 completions of one prompt (32 tokens, 64
generated, 2 blocks, S steps in all, temperature 1) and updates the model {iterations} times on them. The model is
random: native Llama without causal masking, 4 layers of width 256, 126,464 tokens. Head "trained": all weights, no KL
term. Head "frozen": LoRA of rank 8 on the layers' matrices, KL term against the model without it.

The plain side (`bench/rl_plain.py`) keeps S + 1 copies of the canvas, draws and scores all positions over the whole
vocabulary in bfloat16, runs a pass for the old log-probabilities and one for the reference, takes a dense bfloat16
log-softmax at every step, and differentiates the S graphs in one backward pass. Ours is `CJGRPOTrainer`. Both have the
same starting weights, prompt, reward and optimizer (fused AdamW).

Times: both in one process, in turns; median [quartiles] of the rounds. Processor time is that of all threads: a busy
machine disturbs it less. Peaks: each side in a process of its own, the most memory in use during an iteration beyond
weights, gradients and optimizer state. "Agreement" is the largest difference of loss and gradients between both sides
on one trajectory (float32 weights and log-softmax, two updates), relative to the largest entry of each tensor. Goal at
S = 16: 4 times faster, 8 times smaller.
"""


def cells(case: dict[str, Any]) -> list[str]:
    """A case as the cells of a row."""
    plain, ours = case["plain"], case["ours"]
    return [
        case["head"],
        str(case["steps"]),
        seconds(plain),
        seconds(ours),
        f"{case['speedup']:.1f}x",
        f"{case['processor_speedup']:.1f}x" if case["device"] == "cpu" else "",
        f"{plain['peak_mib']:.0f} MiB",
        f"{ours['peak_mib']:.0f} MiB",
        f"{case['memory_ratio']:.1f}x",
    ]


def ordered(run: dict[str, Any]) -> list[dict[str, Any]]:
    """The cases by head and number of steps."""
    return sorted(run["cases"], key=lambda case: (case["head"] != "trained", case["steps"]))


def seconds(side: dict[str, Any]) -> str:
    """Median and quartiles."""
    low, high = side["quartiles"]
    unit, factor = ("s", 1.0) if side["seconds"] >= 1 else ("ms", 1e3)
    digits = 1 if unit == "s" else 0
    low, middle, high = (f"{value * factor:.{digits}f}" for value in (low, side["seconds"], high))
    return f"{middle} {unit} [{low}, {high}]"


def title(run: dict[str, Any]) -> str:
    """What was run where."""
    where = run["environment"]
    threads = f", {where['threads']} threads" if where["device"] == "cpu" else ""
    return f"{where['name']}{threads}, {run['dtype']} weights"


def show(run: dict[str, Any]) -> None:
    """The table on the terminal."""
    table = Table(title=title(run))
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for case in ordered(run):
        table.add_row(*cells(case))
    Console().print(table)


def markdown(runs: list[dict[str, Any]]) -> str:
    """The page: a table a run."""
    iterations = " or ".join(str(count) for count in sorted({run["iterations"] for run in runs}))
    parts = [INTRODUCTION.format(iterations=iterations)]
    for run in runs:
        where = run["environment"]
        lines = [f"## {title(run)}", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        lines += ["| " + " | ".join(cells(case)) + " |" for case in ordered(run)]
        agreed = ", ".join(f"{worst:.1e} (head {head})" for head, worst in run["agreement"].items())
        views = run["views"] or "as many as the trainer chooses"
        missed = [
            f"head {case['head']}: {case['speedup']:.1f} times faster, {case['memory_ratio']:.1f} times smaller"
            for case in ordered(run)
            if case["steps"] == 16 and (case["speedup"] < GOALS[0] or case["memory_ratio"] < GOALS[1])
        ]
        lines += [
            "",
            f"Agreement: {agreed}. Steps whose graphs live at a time on our side: {views}. Layers computed again in "
            f"the backward pass: {CHECKPOINTING[run['checkpointing']]}. {run['iterations']} updates a rollout, "
            f"{' or '.join(str(n) for n in sorted({case['peak_iterations'] for case in run['cases']}))} where peaks "
            "were measured.",
        ]
        if missed:
            lines.append(f"Short of the goal: {'; '.join(missed)}.")
        lines.append(
            f"Backend {where['backend']}; Python {where['python']}, torch {where['torch']}, transformers "
            f"{where['transformers']}; commit {where['commit']}, {where['date']}."
        )
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
