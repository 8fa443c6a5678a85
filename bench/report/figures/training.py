"""Figures of training: docs/rl_llada8b.json (an H200), docs/first_run.json (a CPU), and the memory estimator."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from mdlm_fast.rl.estimate import Estimate
from mdlm_fast.rl.plan import Plan
from mdlm_fast.rl.recipe import Recipe

from .sources import Sources, figure, only, rows_table

Run = Mapping[str, Any]
GIB = 2**30
DEVICE_BYTES = 80 * 10**9  # of the estimate that documents show

#: Rows of the table: the number of steps, what it says, and the fields that choose the run.
LLADA: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ours, packs chosen", {"side": "ours", "steps": 8, "views": 0}),
    ("released way, layers computed again", {"side": "plain", "steps": 8}),
    ("ours, packs chosen", {"side": "ours", "steps": 32, "views": 0}),
    ("ours, one view", {"side": "ours", "steps": 32, "views": 1}),
    ("released way, layers computed again", {"side": "plain", "steps": 32}),
)


def llada_run(sources: Sources, **values: Any) -> Run:
    """A run at LLaDA-8B's size."""
    runs = sources.json("rl_llada8b.json", "python -m bench.rl_llada8b --steps 8 32 --write")
    return only(runs, "rl_llada8b.json", **values)


@figure
def llada8b_iterations(sources: Sources) -> str:
    """A table: seconds of an iteration, of its phases, and peak memory."""
    rows = []
    for label, values in LLADA:
        run = llada_run(sources, **values)
        (seconds,), (peak,), phases = run["seconds"], run["peak_gib"], run.get("phases", {})
        parts = ", ".join(f"{phases[name]:.1f}" for name in ("rollout", "ref", "train") if name in phases)
        rows.append([str(run["steps"]), label, f"{seconds:.1f}", parts, f"{peak:.1f}"])
    heads = ["S", "", "seconds", "of them rollout, reference, update", "peak beyond weights and optimizer (GiB)"]
    return rows_table(heads, rows, texts=2)


@figure
def llada8b_predicted_gib(sources: Sources) -> str:
    """What the estimator says of the activations of one view."""
    return f"{llada_run(sources, side='ours', views=1)['predicted_activations_gib']:.1f} GiB"


@figure
def llada8b_peak_gib(sources: Sources) -> str:
    """What was in use."""
    (peak,) = llada_run(sources, side="ours", views=1)["peak_gib"]
    return f"{peak:.1f} GiB"


@figure
def llada8b_logp_gap(sources: Sources) -> str:
    """Largest difference of recorded and new log-probs before the update, over all runs."""
    runs = sources.json("rl_llada8b.json", "python -m bench.rl_llada8b --steps 8 32 --write")
    return f"{max(run.get('logp_gap_max', 0.0) for run in runs):.0e}".replace("e-0", "e-")


@cache
def estimated() -> Estimate:
    """LLaDA-8B with the preset "cj-grpo": arithmetic, no measurement."""
    return Plan.of(Recipe(preset="cj-grpo", model="llada-8b")).memory


@figure
def estimate_total(sources: Sources) -> str:
    return f"{estimated().total / 1e9:.1f} GB"


@figure
def estimate_views(sources: Sources) -> str:
    """In a backward pass at most."""
    return str(estimated().largest_pack(DEVICE_BYTES))


@figure
def estimate_released(sources: Sources) -> str:
    """Activations that the released way keeps."""
    return f"{estimated().released / 1e9:.0f} GB"


def first_run(sources: Sources, task: str) -> Run:
    """What training on a task printed and reached."""
    run: Run = sources.json("first_run.json", "python -m bench.first_run")["runs"][task]
    return run


@figure
def first_run_output(sources: Sources) -> str:
    """What the command prints: the accuracy before, three steps, and from the last step on all."""
    run = first_run(sources, "sudoku")
    wanted = ["accuracy before", *(f"step {step}/" for step in (1, 2, 3, run["steps"])), "cj-grpo on"]
    lines = [line for line in run["lines"] if line.startswith(tuple(wanted))]
    return "\n".join(["```", *lines, "```"])


@figure
def first_run_before(sources: Sources) -> str:
    return f"{first_run(sources, 'sudoku')['before']:.0f}%"


@figure
def first_run_after(sources: Sources) -> str:
    return f"{first_run(sources, 'sudoku')['after']:.0f}%"


@figure
def first_run_seconds(sources: Sources) -> str:
    """Of training, without loading and evaluating."""
    return f"{first_run(sources, 'sudoku')['seconds']} s"


@figure
def first_run_evaluated(sources: Sources) -> str:
    """By `mdlm-fast eval`, of the saved model."""
    return f"{100 * first_run(sources, 'sudoku')['evaluated']:.1f}%"


@figure
def first_run_countdown(sources: Sources) -> str:
    """Before and after, of the other task."""
    run = first_run(sources, "countdown")
    return f"{run['before']:.1f}% to {run['after']:.1f}%"
