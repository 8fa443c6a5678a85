"""``python -m mdlm_fast.pretraining.report``: writes docs/puzzles.md and its picture from a model and its metrics."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import PretrainConfig
from .data import COPY_FROM_STEP, COPY_PROBABILITY, GEN_LENGTH, SHORT_LIMIT, SHORT_PROBABILITY
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
    puzzles whose training answers are mostly of that kind); "short" (share of Countdown answers without working)."""
    from mdlm_fast.tasks import countdown_reward, countdown_test_puzzles, evaluate

    sudoku = evaluate(model, "sudoku", limit=limit, config=config, batch_size=512)
    countdown = evaluate(model, "countdown", limit=limit, config=config, batch_size=512, return_completions=True)
    puzzles = countdown_test_puzzles()[:limit]
    answers = countdown["completions"]
    solved = countdown_reward(answers, numbers=[n for n, _ in puzzles], target=[t for _, t in puzzles])
    groups: dict[bool, list[float]] = {True: [], False: []}
    for (numbers, _), right in zip(puzzles, solved, strict=True):
        groups[max(numbers) <= SHORT_LIMIT].append(right)
    return {
        "sudoku": sudoku["accuracy"],
        "countdown": countdown["accuracy"],
        "likely_short": sum(groups[True]) / max(1, len(groups[True])),
        "likely_worked": sum(groups[False]) / max(1, len(groups[False])),
        "short": sum(";" not in answer for answer in answers) / len(answers),
        "forwards": sudoku["forwards"],
        "problems": (sudoku["problems"], countdown["problems"], len(groups[True]), len(groups[False])),
    }


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


def document(rows: list[tuple[str, dict[str, Any]]], records: list[dict[str, Any]], parameters: int, note: str) -> str:
    """The text of docs/puzzles.md; `note` is put below the picture."""
    config = PretrainConfig()
    sudoku, countdown, likely_short, likely_worked = rows[0][1]["problems"]
    last = records[-1]["step"]
    table = "\n".join(
        f"| {name} | {r['forwards']} | {100 * r['sudoku']:.1f} | {100 * r['countdown']:.1f} | "
        f"{100 * r['likely_short']:.1f} | {100 * r['likely_worked']:.1f} | {100 * r['short']:.1f} |"
        for name, r in rows
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
blanks left in; a third of LLaDA-8B's published answers to these puzzles do exactly that. A blank of a fully
masked answer is then a digit or a 0. Confidence order starts with a blank whose digit is certain, and from there
a solution is being written. Random order may start with a blank that could hold several digits, where 0 is the
likeliest single token, and so do blocks of four where the first block holds no other. Before step
{COPY_FROM_STEP:,}, without such copies, both orders solved all of 80 puzzles tried: 288 grids are few.

## Training

    mdlm-fast pretrain

with its defaults is the recipe of these weights: {last:,} steps of {config.countdown_batch} Countdown and
{config.sudoku_batch} Sudoku examples from seed {config.seed}, one thread. A step takes about 0.6 s on an
otherwise idle core (AMD EPYC with AVX-512 and bfloat16), so the whole run takes about {last * 0.6 / 3600:.1f}
hours there. It may be stopped and started again at any time. Weights are equal bit for bit on equal hardware,
library versions and thread count only; elsewhere expect the same accuracy.

![Training loss and accuracy](puzzles.png)

{note}

- Masks: the number of masked positions is uniform in three of five examples, random positions; a prefix in the
  others. The loss is the mean over an example's masked positions, an unbiased estimate of the bound without the
  variance of 1/t.
- Integer embeddings and head rows start from cosines and sines of the integer at {len(PERIODS)} periods, so that
  addition need not be learned number by number. An earlier trial with one token per character, without these
  features and with 1.5 million parameters, was still at 0% of Countdown after 220,000 examples.
- The target is the first of a fixed list of solution shapes (plus and minus before products and quotients), so
  that one puzzle has one worked answer.
- Muon for the body's matrices, AdamW for the rest; the learning rate is constant, then falls to zero over the last
  {100 * config.decay_share:.0f}% of the steps.

This page is written by `python -m mdlm_fast.pretraining.report`. The test files are d1's (arXiv 2504.12216,
Apache-2.0).
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    from mdlm_fast.models import load_model
    from mdlm_fast.plots import save_png

    parser = argparse.ArgumentParser(prog="python -m mdlm_fast.pretraining.report", description=__doc__)
    parser.add_argument("--metrics", type=Path, default=Path("docs/puzzles-metrics.jsonl"), help="of the training run")
    parser.add_argument("--model", default="builtin:puzzles", help="model to measure")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of puzzles.md and puzzles.png")
    parser.add_argument(
        "--note", default="Accuracy is that of the weights at each step.", help="line below the picture"
    )
    parser.add_argument("--limit", type=int, help="only the first so many puzzles of each task")
    args = parser.parse_args(argv)
    records = [json.loads(line) for line in args.metrics.read_text(encoding="utf-8").splitlines()]
    model = load_model(args.model, device="cpu")
    rows = []
    for name, config in decoders():
        rows.append((name, measure(model, config, args.limit)))
        print(name, rows[-1][1], file=sys.stderr, flush=True)
    parameters = sum(p.numel() for p in model.model.parameters())
    args.out.mkdir(parents=True, exist_ok=True)
    save_png(curves(records), args.out / "puzzles.png")
    temporary = args.out / "puzzles.md.tmp"
    temporary.write_text(document(rows, records, parameters, args.note), encoding="utf-8")
    temporary.replace(args.out / "puzzles.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
