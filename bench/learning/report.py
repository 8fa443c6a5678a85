"""The report: docs/learning.md and its pictures, from docs/learning.json and the runs that finished since."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.learning import claims, plots
from bench.learning.analysis import (
    Cell,
    Result,
    before,
    cells,
    chosen,
    shared_end,
)
from bench.learning.markdown import name, paragraph, place, spread, table
from bench.learning.run import FOLDER, ROOT, finished
from bench.learning.runs import COMPARISONS, LEARNING_RATES, SHARED, VALIDATION_PROMPTS, all_runs
from mdlm_fast.files import whole_file
from mdlm_fast.plots import save_png

DOCS = ROOT / "docs"

INTRODUCTION = (
    """\
Written by `python -m bench.learning report` from docs/learning.json; `make learning` makes the runs again and goes on
where it was stopped. Every run starts from `builtin:puzzles` ([puzzles.md](puzzles.md)), trains all its weights on
generated puzzles and is evaluated on the held-out ones (500 Sudoku, 256 Countdown), which are never trained on, with
the greedy decoder of the same schedule. The reward is 1 for a solved puzzle, else 0.""",
    """\
Everything but the method is equal: {prompts} prompts x {generations} completions of {length} tokens an optimizer step,
{iterations} steps a rollout, AdamW at a constant learning rate without weight decay, gradients clipped at norm
{norm:g}, beta {beta:g} against the starting model, clip range {epsilon:g}. Learning rates are chosen for each method
from {rates} by accuracy on {validation} generated puzzles that are not trained on; the last table has those that ran.
Methods whose step is cheaper take more optimizer steps, so that they can also be compared at equal seconds, which are
processor seconds of training on one thread (rollouts, rewards, updates; no evaluation). A number "a ± b" is the mean
over seeds and the sample standard deviation.""",
    """\
Log-probs in training are divided by the temperature of the rollouts in MDPO and by none in diffu-GRPO, as published;
other rollouts have temperature 1.""",
    """\
{rare} of the {puzzles} held-out Countdown puzzles have solutions of shapes that are rare in generated ones, and the
model solves {lucky} of these with EOSER at the start ([puzzles.md](puzzles.md)). Training on generated puzzles brings
rewards for the others, so {most:.0f}% is about the most that can be expected there.""",
)
CURVES = "Thin lines: a seed each; thick ones: their mean.\n"
PASSES = (
    "Bands: from the worst to the best seed. Diamonds: the schedule of training, where it has one number of steps.\n"
)


def write(folder: Path = FOLDER, docs: Path = DOCS) -> list[Path]:
    """Adds finished runs to learning.json and writes the page and the pictures; returns what it wrote.

    Raises:
        FileNotFoundError: there are no results at all."""
    store = docs / "learning.json"
    results: dict[str, Result] = json.loads(store.read_text(encoding="utf-8")) if store.exists() else {}
    runs = all_runs()
    results |= {run.id: result for run in runs if (result := finished(run, folder)) is not None}
    results = {run.id: results[run.id] for run in runs if run.id in results}
    if not results:
        raise FileNotFoundError(f"neither {store} nor {folder} holds a finished run; make some: `make learning`")
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(result)}" for key, result in results.items())
    page = document(results)
    with whole_file(store) as path:
        path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    pictures = docs / "learning"
    pictures.mkdir(exist_ok=True)
    written = [store, docs / "learning.md"]
    for picture, figure in figures(results):
        written.append(save_png(figure, pictures / f"{picture}.png"))
    with whole_file(docs / "learning.md") as path:
        path.write_text(page, encoding="utf-8")
    return written


def figures(results: dict[str, Result]) -> Iterator[tuple[str, Any]]:
    """(name, figure) of every picture of the page."""
    for rollouts, task in COMPARISONS:
        found = list(chosen(results, rollouts, task).values())
        start = before(results, rollouts, task)
        if found:
            yield f"{rollouts}-{task}-curves", plots.training_curves(found)
        if found and start:
            yield f"{rollouts}-{task}-passes", plots.accuracy_by_passes(start, found)


def document(results: dict[str, Result]) -> str:
    """The text of docs/learning.md."""
    values = {
        "prompts": SHARED["per_device_train_batch_size"] // SHARED["num_generations"],
        "generations": SHARED["num_generations"],
        "length": SHARED["max_completion_length"],
        "iterations": SHARED["num_iterations"],
        "norm": SHARED["max_grad_norm"],
        "beta": SHARED["beta"],
        "epsilon": SHARED["epsilon"],
        "rates": ", ".join(sorted(LEARNING_RATES, key=float)),
        "validation": VALIDATION_PROMPTS,
    }
    decoders = json.loads((DOCS / "puzzles.json").read_text(encoding="utf-8"))["decoders"]
    start = next(found for found in decoders if found["name"].startswith("EOSER, "))
    (_, usual), (lucky, rare) = start["usual_shape"], start["rare_shape"]
    values |= {"rare": rare, "puzzles": usual + rare, "lucky": lucky, "most": 100 * usual / (usual + rare)}
    parts = ["# The trainers learn\n", *(paragraph(text.format(**values)) for text in INTRODUCTION)]
    parts += ["## What shows at this scale\n", claims.claims(results)]
    for rollouts, task in COMPARISONS:
        if chosen(results, rollouts, task):
            parts.append(section(results, rollouts, task))
    parts += ["## Learning rates\n", learning_rates(results), "## Machines\n", machines(results)]
    return "\n".join(parts)


def section(results: dict[str, Result], rollouts: str, task: str) -> str:
    """A comparison: its table and pictures."""
    found, start = list(chosen(results, rollouts, task).values()), before(results, rollouts, task)
    picture = f"learning/{rollouts}-{task}"
    lines = [f"## {place((rollouts, task))}\n", comparison(found)]
    lines += [f"![Held-out accuracy, reward, KL and entropy in training]({picture}-curves.png)\n", CURVES]
    if start:
        lines += [f"![Held-out accuracy over decoding steps]({picture}-passes.png)\n", PASSES]
        lines += [decoders(start, found)]
    return "\n".join(lines)


def comparison(found: list[Cell]) -> str:
    """The table of a comparison's methods, and at what they are compared."""
    steps, seconds = shared_end(found, "step"), shared_end(found, "cpu_seconds")
    head = ["method", "learning rate", "seeds", "before (%)", "after (%)", "gain (points)", "optimizer steps"]
    head += ["seconds", f"at step {steps:.0f} (%)", f"at {seconds:.0f} s (%)"]
    rows = [
        [
            name(cell),
            cell.learning_rate,
            str(len(cell.runs)),
            f"{cell.start.mean():.1f}",
            spread(cell.end),
            spread(cell.end - cell.start),
            f"{cell.mean('evaluation', 'step')[-1]:.0f}",
            f"{cell.mean('evaluation', 'cpu_seconds')[-1]:.0f}",
            spread(cell.at("step", steps)),
            spread(cell.at("cpu_seconds", seconds)),
        ]
        for cell in found
    ]
    return table(head, rows)


def decoders(start: Result, found: list[Cell]) -> str:
    """Accuracy with every decoder and number of steps, before and after."""
    head = ["decoder", "steps", "before (%)", *(f"{name(cell)} (%)" for cell in found)]
    rows = []
    for decoder, by_steps in start["passes"].items():
        for count, value in by_steps.items():
            after = [spread(cell.with_decoder(decoder, count)) for cell in found]
            rows.append([decoder, count, f"{100 * value:.1f}", *after])
    puzzles = start["settings"]["passes_puzzles"]
    return f"Of the first {puzzles} held-out puzzles, at the end of training:\n\n{table(head, rows)}"


def learning_rates(results: dict[str, Result]) -> str:
    """Every cell of the grid; the chosen ones are marked."""
    rates = sorted(LEARNING_RATES, key=float)
    rows = []
    for rollouts, task in COMPARISONS:
        picked = chosen(results, rollouts, task)
        for method, of in cells(results, rollouts, task).items():
            by_rate = {cell.learning_rate: cell for cell in of}
            row = [f"{name(of[0])}, {place((rollouts, task))}"]
            for rate in rates:
                cell = by_rate.get(rate)
                if cell is None:
                    row.append("")
                elif cell.diverged:
                    row.append(f"{cell.diverged} of {len(cell.runs)} diverged")
                else:
                    best = method in picked and rate == picked[method].learning_rate
                    row.append(f"**{spread(cell.end)}**" if best else spread(cell.end))
            rows.append(row)
    return "Held-out accuracy (%) at the end; chosen on validation puzzles: bold.\n\n" + table(["", *rates], rows)


def machines(results: dict[str, Result]) -> str:
    """Where the runs ran: seconds compare on one machine alone."""
    kinds: dict[str, int] = {}
    for result in results.values():
        m = result["machine"]
        text = (
            f"{m['cpu']}, {m['cores']} cores, {m['threads']} thread a run, backend {m['backend']}; "
            f"Python {m['python']}, torch {m['torch']}, transformers {m['transformers']}"
        )
        kinds[text] = kinds.get(text, 0) + 1
    lines = [f"- {text}: {count} runs" for text, count in kinds.items()]
    if len(kinds) > 1:
        lines.append("\nThe runs come from several machines, so seconds of different runs may not be comparable.")
    return "\n".join(lines) + "\n"
