"""``python -m mdlm_fast.pretraining.report``: writes docs/puzzles.md and its picture from results files.

``--measure`` first decodes the test puzzles with every decoder of the table, some minutes, and writes
docs/puzzles.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdlm_fast.files import whole_file

from .config import PretrainConfig
from .data import (
    COPY_FROM_STEP,
    COPY_PROBABILITY,
    GEN_LENGTH,
    MINUS,
    PLUS,
    SHORT_LIMIT,
    SHORT_PROBABILITY,
    STRUCTURES,
    canonical_structure,
)
from .network import PERIODS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mdlm_fast.config import DecodeConfig
    from mdlm_fast.models import MaskedDiffusionModel


def decoders() -> list[tuple[str, DecodeConfig]]:
    """The rows of the table."""
    from mdlm_fast.config import EOSER, DecodeConfig

    full = DecodeConfig(gen_length=GEN_LENGTH)
    return [
        ("LLaDA, full canvas", full),
        ("EOSER, full canvas", full.replace(eoser=EOSER())),
        ("LLaDA, blocks of 4", full.replace(block_length=4)),
        ("random order", full.replace(confidence="random", seed=0)),
        ("LLaDA, full canvas", full.replace(steps=GEN_LENGTH // 2)),
        ("EOSER, full canvas", full.replace(steps=GEN_LENGTH // 2, eoser=EOSER())),
        ("random order", full.replace(steps=GEN_LENGTH // 2, confidence="random", seed=0)),
        ("ASS", DecodeConfig.preset("ass", gen_length=GEN_LENGTH)),
        ("EOSER + ASS", DecodeConfig.preset("eoser-ass", gen_length=GEN_LENGTH)),
        ("RCR", DecodeConfig.preset("rcr", gen_length=GEN_LENGTH)),
    ]


def measure(model: MaskedDiffusionModel, config: DecodeConfig, limit: int | None) -> dict[str, Any]:
    """Shares solved of the held-out puzzles: "sudoku", "countdown", "likely_short" and "likely_worked" (Countdown
    puzzles whose training answers are mostly of that kind); "short" (share of Countdown answers without working);
    "usual_shape" and "rare_shape" (solved and tried, of Countdown puzzles whose canonical answer adds two numbers and
    subtracts the third, and of the others)."""
    from mdlm_fast.tasks import countdown_reward, countdown_test_puzzles, evaluate

    sudoku = evaluate(model, "sudoku", limit=limit, config=config, batch_size=512)
    countdown = evaluate(model, "countdown", limit=limit, config=config, batch_size=512, return_completions=True)
    puzzles = countdown_test_puzzles()[:limit]
    answers = countdown["completions"]
    solved = countdown_reward(answers, numbers=[n for n, _ in puzzles], target=[t for _, t in puzzles])
    groups: dict[bool, list[float]] = {True: [], False: []}
    shapes: dict[bool, list[float]] = {True: [], False: []}
    for (numbers, _), usual, right in zip(puzzles, usual_shapes(puzzles), solved, strict=True):
        groups[max(numbers) <= SHORT_LIMIT].append(right)
        shapes[usual].append(right)
    return {
        "sudoku": sudoku["accuracy"],
        "countdown": countdown["accuracy"],
        "likely_short": sum(groups[True]) / max(1, len(groups[True])),
        "likely_worked": sum(groups[False]) / max(1, len(groups[False])),
        "short": sum(";" not in answer for answer in answers) / len(answers),
        "forwards": sudoku["forwards"],
        "problems": [sudoku["problems"], countdown["problems"], len(groups[True]), len(groups[False])],
        "usual_shape": [round(sum(shapes[True])), len(shapes[True])],
        "rare_shape": [round(sum(shapes[False])), len(shapes[False])],
    }


def usual_shapes(puzzles: list[tuple[tuple[int, int, int], int]]) -> list[bool]:
    """Whether the canonical answer adds two numbers and subtracts the third, the shape that training has most of."""
    numbers = np.array([sorted(numbers, reverse=True) for numbers, _ in puzzles], dtype=np.int64)  # [N, 3]
    shapes = [STRUCTURES[i] for i in canonical_structure(numbers, np.array([target for _, target in puzzles]))]
    return [(shape.first, shape.second) == (PLUS, MINUS) for shape in shapes]


def measure_all(model: MaskedDiffusionModel, limit: int | None) -> dict[str, Any]:
    """What docs/puzzles.json holds: "parameters" of the model, and "decoders", what `measure` found of each, with its
    "name"."""
    rows = []
    for name, config in decoders():
        rows.append({"name": name, **measure(model, config, limit)})
        print(rows[-1], file=sys.stderr, flush=True)
    return {"parameters": sum(p.numel() for p in model.model.parameters()), "decoders": rows}


def curves(records: list[dict[str, Any]]) -> Figure:
    """Training loss and share of fresh puzzles solved, over optimiser steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, label in (("loss_countdown", "Countdown"), ("loss_sudoku", "Sudoku")):
        points = [(r["step"], r[name]) for r in records if name in r]
        left.semilogy(*zip(*points, strict=True), label=label)
    left.set(xlabel="optimiser step", ylabel="masked cross-entropy (nats)", title="Training loss")
    for name, label in (
        ("sudoku", "Sudoku"),
        ("countdown_eos_last", "Countdown, EOS last"),
        ("countdown", "Countdown, confidence order"),
    ):
        points = [(r["step"], 100 * r[name]) for r in records if name in r]
        right.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    right.set(xlabel="optimiser step", ylabel="solved (%)", title="100 generated puzzles each", ylim=(0, 102))
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    return figure


def step_seconds(records: list[dict[str, Any]]) -> float:
    """Of a training step when the machine was least busy: the least between two records of one run."""
    times = [(b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairwise(records)]
    return min(seconds for seconds in times if seconds > 0)  # a run that goes on counts from 0


def document(results: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """The text of docs/puzzles.md.

    Args:
        results: of `measure_all`.
        records: of the training run (docs/puzzles-metrics.jsonl).
    """
    config = PretrainConfig()
    rows, parameters = results["decoders"], results["parameters"]
    sudoku, countdown, likely_short, likely_worked = rows[0]["problems"]
    (right, usual), (lucky, rare) = (rows[1][shape] for shape in ("usual_shape", "rare_shape"))  # with EOSER
    last, seconds = records[-1]["step"], step_seconds(records)
    table = "\n".join(
        f"| {r['name']} | {r['forwards']} | {100 * r['sudoku']:.1f} | {100 * r['countdown']:.1f} | "
        f"{100 * r['likely_short']:.1f} | {100 * r['likely_worked']:.1f} | {100 * r['short']:.1f} |"
        for r in rows
    )
    return f"""# The built-in puzzle model

`builtin:puzzles` is a native `LlamaForCausalLM` with `config.is_causal = False` and {parameters:,} parameters
({config.num_layers} layers, width {config.hidden_size}), trained from scratch by masked diffusion on generated
Sudoku 4x4 and three-number Countdown. It exists so that decoders and trainers have a real model to work on
anywhere, in seconds.

## What it reads and writes

    sudoku 3 1 0 2 2 0 0 0 0 2 1 0 0 3 2 0 :      ->  3 1 4 2 2 4 3 1 4 2 1 3 1 3 2 4
    countdown 30 100 93 to 23 :                   ->  93 + 30 = 123 ; 123 - 100 = 23

Whole integers from 0 to 399 are single tokens. Answers are padded with EOS to {GEN_LENGTH} positions, as
LLaDA's are. Sudoku puzzles have 4 to 12 blanks in training, Countdown numbers and targets are from 1 to 100.

## Solved on the held-out test files (%)

{sudoku} Sudoku puzzles, scored by validity; {countdown} Countdown puzzles, scored by value: every number once,
every stated step right. None of them was generated in training. One run each; random order with seed 0.

| decoder | passes | Sudoku | Countdown | of these: short likely | worked likely | answered short |
|---|---|---|---|---|---|---|
{table}

"Short likely" are the {likely_short} puzzles with no number above {SHORT_LIMIT}, for which training answers are mostly
short; "worked likely" are the other {likely_worked}. The last column is the share of answers given without working.

### The EOS trap

Training answers differ in length, as those of instruction data do. A worked answer has eleven words and is
right. A short one has five or seven words: an expression over the three numbers whose signs were guessed, so it
is right about one time in six. {100 * SHORT_PROBABILITY[1]:.0f}% of the answers are short where no number is
above {SHORT_LIMIT}, else {100 * SHORT_PROBABILITY[0]:.0f}%. This mixture was designed so that a small model has
the trap; nothing in the decoder or the scorer refers to it. On a fully masked canvas EOS, which many short
answers share at positions 5 to 10, is more likely there than any one word of the worked answer. Plain
confidence order commits it first and so decides for a guess. EOSER discounts EOS early on, other words are
committed first, and they make the worked answer the likelier one. Blocks of four positions, decoded left to
right, avoid the trap too: the first block holds no EOS.

### Why order matters for Sudoku

From step {COPY_FROM_STEP:,} on, {100 * COPY_PROBABILITY:.0f}% of the Sudoku answers copy the puzzle with its
blanks left in; many of LLaDA-8B's published answers to these puzzles do exactly that. A blank of a fully
masked answer is then a digit or a 0. Confidence order starts with a blank whose digit is certain, and from there
a solution is being written. Random order may start with a blank that could hold several digits, where 0 is the
likeliest single token, and so do blocks of four where the first block holds no other.

## Training

    mdlm-fast pretrain

with its defaults is the recipe of these weights: {last:,} steps of {config.countdown_batch} Countdown and
{config.sudoku_batch} Sudoku examples from seed {config.seed}, one thread. A step took {seconds:.1f} s at best on a
core of an AMD EPYC with AVX-512 and bfloat16, which makes {last * seconds / 60:.0f} minutes for all of them. The run
may be stopped and started again at any time. Weights are equal bit for bit on equal hardware, library versions and
thread count only; elsewhere expect the same accuracy.

![Training loss and accuracy](puzzles.png)

Accuracy up to step {COPY_FROM_STEP:,} is that of weights averaged over the steps before, later that of the weights
themselves.

With EOSER the model solves {right} of the {usual} Countdown test puzzles whose canonical answer adds two numbers and
subtracts the third, and {lucky} of the other {rare} (two subtractions, sums of three, products, quotients): those
shapes are rare in training, and {last:,} steps were too few for them.

- Masks: the number of masked positions is uniform in three of five examples, random positions; a prefix in the
  others. The loss is the mean over an example's masked positions, an unbiased estimate of the bound without the
  variance of 1/t.
- Integer embeddings and head rows start from cosines and sines of the integer at {len(PERIODS)} periods, so that
  addition need not be learned number by number.
- The target is the first of a fixed list of solution shapes (plus and minus before products and quotients), so
  that one puzzle has one worked answer.
- Muon for the body's matrices, AdamW for the rest; the learning rate is constant, then falls to zero over the last
  {100 * config.decay_share:.0f}% of the steps.

This page is written by `python -m mdlm_fast.pretraining.report` from [puzzles.json](puzzles.json), which its
`--measure` writes, and [puzzles-metrics.jsonl](puzzles-metrics.jsonl), which training does. The test files are d1's
(arXiv 2504.12216, Apache-2.0).
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    from mdlm_fast.models import load_model
    from mdlm_fast.plots import save_png

    parser = argparse.ArgumentParser(prog="python -m mdlm_fast.pretraining.report", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure anew, and write puzzles.json")
    parser.add_argument("--model", default="builtin:puzzles", help="model to measure")
    parser.add_argument("--limit", type=int, help="measure only the first so many puzzles of each task")
    parser.add_argument("--folder", type=Path, default=Path("docs"), help="of the results files and the page")
    args = parser.parse_args(argv)
    measured = args.folder / "puzzles.json"
    if args.measure:
        found = measure_all(load_model(args.model, device="cpu"), args.limit)
        with whole_file(measured) as path:
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    lines = (args.folder / "puzzles-metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    save_png(curves(records), args.folder / "puzzles.png")
    with whole_file(args.folder / "puzzles.md") as path:
        path.write_text(document(json.loads(measured.read_text(encoding="utf-8")), records), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
