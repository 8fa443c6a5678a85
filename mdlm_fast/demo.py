"""`mdlm-fast demo`: held-out puzzles decoded live by the model inside the package, then a comparison of decoders."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdlm_fast.cli_generate import tokenize
from mdlm_fast.config import DecodeConfig
from mdlm_fast.decode import generate
from mdlm_fast.demo_view import CanvasView, Puzzle, decoder_table
from mdlm_fast.plots import png_path, save_png, trajectory_figure
from mdlm_fast.tasks.countdown import countdown_correct, countdown_prompt
from mdlm_fast.tasks.heldout import countdown_test_puzzles, sudoku_test_puzzles
from mdlm_fast.tasks.sudoku import sudoku_correct, sudoku_prompt

if TYPE_CHECKING:
    from rich.console import Console

    from mdlm_fast.models import MaskedDiffusionModel
    from mdlm_fast.output import GenerateOutput

SHOWN_LIVE = 2  # puzzles of each kind


def held_out(count: int) -> list[Puzzle]:
    """The first `count` Sudoku and the first `count` Countdown test puzzles, none of which was trained on.

    Raises:
        ValueError: there are not that many.
    """
    sudoku, countdown = sudoku_test_puzzles(), countdown_test_puzzles()
    most = min(len(sudoku), len(countdown))
    if not 1 <= count <= most:
        raise ValueError(f"puzzles={count} must be from 1 to {most}, the number of held-out puzzles of each kind")
    prompts = [("sudoku", sudoku_prompt(grid), sudoku_correct) for grid in sudoku[:count]]
    prompts += [("countdown", countdown_prompt(*puzzle), countdown_correct) for puzzle in countdown[:count]]
    return [Puzzle(kind, prompt, partial(correct, prompt)) for kind, prompt, correct in prompts]


def decoders(length: int) -> list[tuple[str, DecodeConfig]]:
    """The decoders of the table. All fill `length` tokens; those without ASS commit one token a forward pass, and plain
    decoding is also shown with as few passes as ASS takes."""
    ascending = DecodeConfig.preset("ass", gen_length=length)
    few = ascending.total_steps
    return [
        ("LLaDA", DecodeConfig.preset("llada", gen_length=length)),
        ("EOSER", DecodeConfig.preset("eoser", gen_length=length)),
        ("RCR", DecodeConfig.preset("rcr", gen_length=length)),
        (f"LLaDA, {few} steps", DecodeConfig.preset("llada", gen_length=length, steps=few)),
        ("ASS", ascending),
        ("EOSER + ASS", DecodeConfig.preset("eoser-ass", gen_length=length)),
    ]


def compare(
    model: MaskedDiffusionModel, puzzles: list[Puzzle], length: int
) -> tuple[list[dict[str, Any]], dict[str, GenerateOutput]]:
    """Decode the same puzzles with every decoder.

    Returns:
        A row of the table each (decoder, forwards, seconds, tokens_per_forward, sudoku_solved, countdown_solved), and
        the outputs by decoder.
    """
    ids, mask = tokenize(model, [puzzle.prompt for puzzle in puzzles], chat=False)
    generate(model, ids[:1], mask[:1], DecodeConfig(gen_length=2))  # the first call pays for set-up: not timed
    results, outputs = [], {}
    for name, config in decoders(length):
        start = time.perf_counter()
        output = generate(model, ids, mask, config)
        seconds = time.perf_counter() - start
        solved = {"sudoku": 0, "countdown": 0}
        for puzzle, text in zip(puzzles, output.text or [], strict=True):
            solved[puzzle.kind] += puzzle.solved(text)
        forwards = output.stats.forwards
        results.append(
            {
                "decoder": name,
                "forwards": forwards,
                "seconds": round(seconds, 4),
                "tokens_per_forward": round(length / forwards, 3),
                "sudoku_solved": solved["sudoku"],
                "countdown_solved": solved["countdown"],
            }
        )
        outputs[name] = output
    return results, outputs


def watch(model: MaskedDiffusionModel, puzzles: list[Puzzle], length: int, console: Console, delay: float) -> None:
    """Decode a few puzzles with EOSER while drawing them."""
    ids, mask = tokenize(model, [puzzle.prompt for puzzle in puzzles], chat=False)
    config = DecodeConfig.preset("eoser", gen_length=length)
    words = token_texts(model)
    with CanvasView(
        console,
        puzzles,
        words,
        length=length,
        steps=config.total_steps,
        eos_ids=model.eos_ids,
        delay=delay,
    ) as view:
        generate(model, ids, mask, config, streamer=view)


def token_texts(model: MaskedDiffusionModel) -> list[str]:
    """The text of every token id of the built-in model."""
    tokenizer = model.tokenizer
    return [str(token) for token in tokenizer.convert_ids_to_tokens(list(range(model.vocab_size)))]


def picture(model: MaskedDiffusionModel, output: GenerateOutput, row: int, length: int, title: str, path: Path) -> Path:
    """Write the trajectory of one row of a decode as PNG and return its path."""
    trajectory = output.trajectory
    if trajectory is None:
        raise ValueError("output has no trajectory: decode with record='trajectory'")
    words = token_texts(model)
    tokens = output.sequences[row, -length:].tolist()
    labels = ["eos" if token in model.eos_ids else words[token] for token in tokens]
    steps, probability = trajectory.commit_step[row, -length:], trajectory.commit_logp[row, -length:].exp()
    figure = trajectory_figure(steps, probability, labels, title=title, confidence_label="probability")
    return save_png(figure, path)


def run_demo(model: MaskedDiffusionModel, *, puzzles: int, output: Path, delay: float, quiet: bool) -> dict[str, Any]:
    """The whole demo.

    Args:
        model: the built-in model.
        puzzles: held-out puzzles of each kind for the comparison.
        output: file of the picture.
        delay: seconds a step stays on the screen of the live part.
        quiet: draw nothing; for callers that want the numbers alone.

    Returns:
        {"puzzles": of each kind, "results": rows of the table, "picture": path}.
    """
    from rich.console import Console

    output = png_path(output)  # refuse a bad path now, not after a minute of decoding
    console = Console(quiet=quiet, highlight=False)
    length = int(model.settings["gen_length"])
    chosen = held_out(puzzles)
    if not quiet:
        few = chosen[: min(SHOWN_LIVE, puzzles)] + chosen[puzzles : puzzles + SHOWN_LIVE]
        console.print("[bold]Held-out puzzles, decoded with EOSER[/], one token a forward pass")
        watch(model, few, length, console, delay)
        console.print()
    results, outputs = compare(model, chosen, length)
    console.print(decoder_table(results, puzzles))
    row = puzzles  # the first Countdown: an answer with an order to it
    title = f"{chosen[row].title} (decoded with EOSER)"
    path = picture(model, outputs["EOSER"], row, length, title, output)
    console.print(f"Trajectory of one puzzle (commit step and confidence of every position): {path}", soft_wrap=True)
    return {"puzzles": puzzles, "results": results, "picture": str(path)}
