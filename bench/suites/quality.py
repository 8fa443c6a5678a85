"""Accuracy beside speed: puzzles solved by the built-in model, over the forward passes that each decoder needs.

A speed means little without the accuracy it costs, so every decoder gets a curve: its number of steps, or the parameter
of its rule, from careful to hasty, greedy, on the held-out Sudoku and Countdown puzzles. A point states how many
puzzles it is over and the 95% interval that follows. One point of each curve is also timed as the literature asks of
claims of efficiency: the latency of one puzzle decoded alone, and the throughput at stated batch sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from statistics import NormalDist
from typing import Any

from mdlm_fast import DecodeConfig, generate, load_model
from mdlm_fast.models import MaskedDiffusionModel
from mdlm_fast.tasks import evaluate
from mdlm_fast.tasks.evaluation import build_prompts, completion_texts, encode_prompts
from mdlm_fast.tasks.registry import get_task, load_rows

from ..harness.results import OURS, Record, Side
from ..harness.spread import Spread
from ..harness.timing import Candidate, interleave
from .settings import Cell, Settings

TASKS = ("sudoku", "countdown")
LENGTH = 24  # tokens of an answer, as the model was trained with
FEW_PUZZLES = 64  # of each task in the small set; the full one takes all
SMALL_BATCH, LARGE_BATCH = 16, 64


@dataclass(frozen=True)
class Curve:
    """A decoder and what trades its accuracy for passes.

    Attributes:
        decoder: its name.
        preset: of `DecodeConfig`.
        parameter: the field that moves along the curve.
        values: of it, from most passes to fewest.
        few: those of the small set; the middle one is timed.
        fixed: other fields.
    """

    decoder: str
    preset: str
    parameter: str
    values: tuple[float, ...]
    few: tuple[float, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def config(self, value: float) -> DecodeConfig:
        """Greedy, of the point with this value. The seed is that of random order."""
        settings = {"gen_length": LENGTH, "record": "none", "temperature": 0.0, "seed": 0, **self.fixed}
        return DecodeConfig.preset(self.preset, **{**settings, self.parameter: value})


STEPS: tuple[float, ...] = (24, 12, 8, 6, 4, 3, 2)
FEW_STEPS: tuple[float, ...] = (24, 8, 4, 2)
THRESHOLDS: tuple[float, ...] = (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
CURVES = (
    Curve("LLaDA", "llada", "steps", STEPS, FEW_STEPS),
    Curve("LLaDA, blocks of 4", "llada", "steps", (24, 12, 6), (24, 12, 6), {"block_length": 4}),
    Curve("random order", "llada", "steps", STEPS, FEW_STEPS, {"confidence": "random"}),
    Curve("EOSER", "eoser", "steps", STEPS, FEW_STEPS),
    Curve("ASS", "ass", "steps", (4,), (4,)),
    Curve("EOSER + ASS", "eoser-ass", "steps", (4,), (4,)),
    Curve("RCR", "rcr", "steps", STEPS, FEW_STEPS),
    Curve("Fast-dLLM, threshold", "fast-dllm", "threshold", THRESHOLDS, (0.99, 0.9, 0.5)),
    Curve("Fast-dLLM, factor", "fast-dllm-factor", "factor", (0.1, 0.25, 0.5, 1.0, 2.0, 4.0), (0.25, 1.0, 4.0)),
    Curve("entropy bound", "entropy-bound", "entropy_bound", (0.01, 0.03, 0.1, 0.3, 1.0, 3.0), (0.03, 0.1, 1.0)),
    Curve("Dream, entropy", "dream-entropy", "steps", STEPS, FEW_STEPS),
    Curve("Dream, margin", "dream-margin", "steps", STEPS, FEW_STEPS),
)


def cells(settings: Settings) -> Iterator[Cell]:
    """A cell a point of every curve and task."""
    for task in TASKS:
        for curve in CURVES:
            for value in curve.values if settings.full else curve.few:
                case = {
                    "decoder": curve.decoder,
                    "task": task,
                    "setting": f"{curve.parameter}={value:g}",
                    "temperature": 0.0,
                }
                yield Cell("quality", case, partial(measure, settings, case, curve, value))


def measure(settings: Settings, case: dict[str, Any], curve: Curve, value: float, puzzles: int = FEW_PUZZLES) -> Record:
    """A point of a curve.

    Args:
        puzzles: the first so many, unless `settings.full`.

    Returns:
        a record whose side has the figures accuracy, accuracy_low and accuracy_high (95% Wilson interval), puzzles,
        forwards (passes of a puzzle, mean), tokens_per_forward, batch_64_puzzles_per_second, batch_64_tokens_per_second
        (the run that gave the accuracy). Where it is timed, `seconds` is the latency of a puzzle decoded alone, over
        several puzzles, and further figures are batch_16_puzzles_per_second and batch_16_tokens_per_second. Tokens are
        all LENGTH of an answer, end tokens too.
    """
    model, config = built_in(settings.device), curve.config(value)
    limit = None if settings.full else puzzles
    found = evaluate(model, case["task"], config=config, limit=limit, batch_size=LARGE_BATCH, return_completions=True)
    low, high = wilson(found["solved"], found["answers"])
    side = Side(
        figures={
            "accuracy": found["accuracy"],
            "accuracy_low": low,
            "accuracy_high": high,
            "puzzles": found["problems"],
            "forwards": found["forwards_per_answer"],
            "tokens_per_forward": LENGTH / found["forwards_per_answer"],
            **throughput(LARGE_BATCH, found["problems"] / found["seconds"]),
        }
    )
    if value == curve.few[len(curve.few) // 2]:
        time_point(side, Answers(model, case["task"], config, found["completions"]), settings)
    return Record("quality", case, {OURS: side}, {"tokens": LENGTH})


@cache
def built_in(device: str) -> MaskedDiffusionModel:
    """The model in the package, 4 MB."""
    return load_model("builtin:puzzles", device=device)


class Answers:
    """Decodes puzzles of a task again, a few at a time, and keeps count of answers that came out differently.

    Args:
        expected: answers to the first puzzles, from another batch size.
    """

    def __init__(self, model: MaskedDiffusionModel, task: str, config: DecodeConfig, expected: list[str]) -> None:
        chosen = get_task(task)
        self._model, self._config, self._expected = model, config, expected
        self._prompts = build_prompts(model, chosen, load_rows(chosen, None, len(expected)))
        self._compared: set[tuple[int, int]] = set()
        self._different: set[tuple[int, int]] = set()

    def decode(self, batch: int, turn: int) -> None:
        """The batch whose turn it is; after the last batch the first follows."""
        start = turn * batch % (len(self._prompts) - batch + 1)
        numbers = range(start, start + batch)
        ids, mask = encode_prompts(self._model, self._prompts[start : start + batch])
        out = generate(self._model, ids, mask, self._config, row_ids=tuple(numbers))
        texts = completion_texts(self._model, out.sequences[:, ids.shape[1] :])
        for number, text in zip(numbers, texts, strict=True):
            self._compared.add((batch, number))
            if text != self._expected[number]:
                self._different.add((batch, number))

    def agreement(self) -> str:
        """How the answers of these batch sizes compare with those expected.

        The rows of a batch do not see each other, but the library's matrix products may round differently for other
        shapes, which can decide between two tokens that are equally likely to the last bits.
        """
        equal = len(self._compared) - len(self._different)
        return f"{equal} of {len(self._compared)} answers equal those at batch {LARGE_BATCH}"


def time_point(side: Side, answers: Answers, settings: Settings) -> None:
    """Adds latency and throughput, batches of 1 and of SMALL_BATCH in turns."""
    names = {size: f"batch {size}" for size in (1, SMALL_BATCH)}
    candidates = [Candidate(name, partial(answers.decode, size)) for size, name in names.items()]
    samples = interleave(candidates, device=settings.device, seconds=settings.seconds)
    side.seconds = Spread.of(samples[names[1]])
    side.agreement = answers.agreement()
    side.figures |= throughput(SMALL_BATCH, SMALL_BATCH / Spread.of(samples[names[SMALL_BATCH]]).median)


def throughput(batch: int, puzzles_per_second: float) -> dict[str, float]:
    """Its figures."""
    return {
        f"batch_{batch}_puzzles_per_second": puzzles_per_second,
        f"batch_{batch}_tokens_per_second": puzzles_per_second * LENGTH,
    }


def wilson(solved: int, tried: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927)."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, spread = solved / tried, z * z / tried
    middle = share + spread / 2
    width = z * math.sqrt(share * (1 - share) / tried + spread / (4 * tried))
    return (middle - width) / (1 + spread), (middle + width) / (1 + spread)
