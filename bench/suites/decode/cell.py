"""One cell: the decoders agree, then they are timed in turns, then once more with a watch on the model.

Where the published loop would take too long, a single step of it is timed and multiplied: the first step of the same
decode with half of its tokens given, whose cost is that of a mean step. Ours always runs whole.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...harness.memory import peak_bytes
from ...harness.results import OURS, Record, Side, timed_sides
from ...harness.timing import Candidate, Stopwatch, interleave
from ..settings import MOST_BYTES, MOST_SECONDS, Settings
from . import captured
from .check import agreement, checked, prompts, timed_model
from .passes import Passes, passes, split
from .shape import Shape
from .systems import SYSTEMS, Decode

CAPTURED = "ours, captured"
#: Seconds of the longest baseline that is decoded whole, in the small set and in the full one.
LONGEST = {False: 1.5, True: MOST_SECONDS / 3}
SPLITS = 3


@dataclass(frozen=True)
class Way:
    """A decoder in this cell.

    Attributes:
        call: what is timed: a whole decode or one step.
        whole: passes of the whole decode.
        factor: the whole over what is timed.
        peak: what the memory is measured of: the whole decode, or its first step, which needs the most.
    """

    call: Callable[[], object]
    whole: Passes
    factor: float
    peak: Callable[[], object]

    @property
    def extrapolated_from(self) -> str | None:
        return f"1 of {self.whole.forwards} steps" if self.factor != 1 else None


def measure(shape: Shape, settings: Settings) -> Record:
    """Times a published decoder and ours on the same model and prompts.

    Figures of every side: forwards (passes of the whole decode), tokens_per_forward (of a sequence), latency_seconds
    (of the whole batch), tokens_per_second, step_seconds; and of a step, outside_seconds (outside the model's body:
    head, scoring, choosing, the loop), their share outside_share, and for the baseline head_seconds, the part of them
    in the LM head. Above temperature 0 decoders draw different tokens, so rules that decide from the scores may take
    different numbers of steps; step_seconds is then the fairer figure.
    """
    device = settings.device
    model = timed_model(shape.vocab, device)
    found = {shape.decoder: agreement(checked(shape), device)}
    system = SYSTEMS[shape.decoder]

    def decode(how: Decode, shape: Shape) -> Callable[[], object]:
        given = prompts(shape, device)
        return lambda: seeded(how, model, given, shape)

    ours = decode(system.ours, shape)
    count = passes(model, ours)
    ways = {OURS: Way(ours, count, 1.0, ours)}
    if system.paced is not None:
        count = passes(model, decode(system.paced, shape))
    one_row = replace(shape, batch=1)
    needed = peak_bytes(first_step(model, decode(system.baseline, one_row)), device) * system.rows(shape.batch)
    if needed <= MOST_BYTES:
        longest = min(LONGEST[settings.full], MOST_SECONDS)
        baseline, half = decode(system.baseline, shape), decode(system.baseline, shape.half_done)
        ways[shape.decoder] = baseline_way(
            model, baseline, half, count.rows // system.rows(shape.batch), longest, device
        )
    if system.captured is not None and torch.device(device).type == "cuda":
        found[CAPTURED] = captured.agreement(shape, device)
        graphs = decode(captured.generate, shape)
        ways[CAPTURED] = Way(graphs, ways[OURS].whole, 1.0, graphs)

    candidates = [candidate(name, way) for name, way in ways.items()]
    sides = timed_sides(interleave(candidates, device=device, seconds=settings.seconds))
    for name, way in ways.items():
        side = sides[name]
        side.agreement = found.get(name)
        side.extrapolated_from = way.extrapolated_from
        side.peak_bytes = peak_bytes(way.peak, device)
        side.figures = figures(side, way, shape)
        if name != CAPTURED:  # a replayed graph calls no module
            side.figures |= outside(model, way, device, head=name != OURS)
    if needed > MOST_BYTES:
        sides[shape.decoder] = Side(
            agreement=found[shape.decoder], verdict=f"does not fit: needs {needed / 1e9:.1f} GB"
        )
    return Record("decode", shape.case(), sides, {"tokens": float(shape.batch * shape.generated)})


def candidate(name: str, way: Way) -> Candidate:
    return Candidate(name, lambda _: way.call(), None, way.factor, way.extrapolated_from)


def seeded(how: Decode, model: Any, given: Tensor, shape: Shape) -> Tensor:
    """A decode whose draws are the same at every call."""
    torch.manual_seed(0)
    return how(model, given, shape)


def first_step(model: Any, decode: Callable[[], object]) -> Callable[[], object]:
    return lambda: passes(model, decode, most=1)


def baseline_way(
    model: Any,
    baseline: Callable[[], object],
    half: Callable[[], object],
    forwards: int,
    longest: float,
    device: str,
) -> Way:
    """The whole decode, or where that would last longer than `longest` seconds a step of it.

    half: the same decode with half of its tokens given. forwards: passes of the whole, where it is extrapolated.
    """
    start, step = first_step(model, baseline), first_step(model, half)
    step()
    seconds = Stopwatch(device).sample(Candidate("a step", lambda _: step()), 1)
    if seconds * forwards <= longest:
        return Way(baseline, passes(model, baseline), 1.0, start)
    return Way(step, Passes(forwards, forwards * passes(model, half, most=1).rows), float(forwards), start)


def figures(side: Side, way: Way, shape: Shape) -> dict[str, float]:
    """Throughput and latency, from the median."""
    assert side.seconds is not None
    seconds, tokens = side.seconds.median, shape.batch * shape.generated
    return {
        "forwards": way.whole.forwards,
        "tokens_per_forward": tokens / way.whole.rows,
        "latency_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "step_seconds": seconds / way.whole.forwards,
    }


def outside(model: Any, way: Way, device: str, *, head: bool) -> dict[str, float]:
    """What a step spends outside the model's body: medians over decodes, or steps, that are watched and not timed."""
    watched = [split(model, way.call, device) for _ in range(SPLITS)]
    found = {
        "outside_seconds": statistics.median(one.outside / one.forwards for one in watched),
        "outside_share": statistics.median(one.outside / one.whole for one in watched),
    }
    if head:
        found["head_seconds"] = statistics.median(one.head / one.forwards for one in watched)
    return found
