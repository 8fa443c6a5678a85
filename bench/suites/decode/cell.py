"""One cell: the decoders agree, then a watch on the model sees where their time goes, then they are timed in turns.

Where the published loop would take too long, a single step of it is timed and multiplied: the first step of the same
decode with half of its tokens given, whose cost is that of a mean step. Ours always runs whole.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...harness.memory import peak_bytes
from ...harness.results import OURS, Record, Side, timed_sides
from ...harness.timing import Candidate, Stopwatch, interleave
from ..settings import MOST_BYTES, Settings
from . import captured
from .check import agreement, checked, prompts, timed_model
from .passes import Passes, Split, passes, split
from .shape import SMALL_VOCAB, Shape
from .systems import SYSTEMS, Decode, System

CAPTURED = "ours, captured"
#: Seconds of the longest baseline that is decoded whole, in the small set and in the full one. A cell decodes it five
#: times.
LONGEST = {False: 1.5, True: 6.0}
WATCHED_STEPS = 3

Call = Callable[[], object]


@dataclass(frozen=True)
class Way:
    """A decoder in this cell.

    Attributes:
        call: what is timed: the whole decode or one step.
        first: the first step of the whole decode, which needs the most memory.
        passes: of the whole decode.
        stepwise: whether `call` is one step.
        watched: `call` seen from the model; empty where the model's modules are not called.
    """

    call: Call
    first: Call
    passes: Passes
    stepwise: bool
    watched: Sequence[Split]

    @property
    def extrapolated_from(self) -> str | None:
        return f"1 of {self.passes.forwards} steps" if self.stepwise else None

    def candidate(self, name: str) -> Candidate:
        factor = float(self.passes.forwards) if self.stepwise else 1.0
        return Candidate(name, lambda _: self.call(), None, factor, self.extrapolated_from)


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
    system = SYSTEMS[shape.decoder]
    found = {shape.decoder: agreement(checked(shape), device)}

    ours = decode(system.ours, model, shape, device)
    ways = {OURS: whole(model, ours, device)}
    needed = needed_bytes(system, model, shape, device)
    if needed <= MOST_BYTES:
        ways[shape.decoder] = baseline_way(system, model, shape, ways[OURS], LONGEST[settings.full], device)
    if system.captured is not None and torch.device(device).type == "cuda":
        found[CAPTURED] = captured.agreement(shape, device)
        graphs = decode(captured.generate, model, shape, device)
        ways[CAPTURED] = Way(graphs, graphs, ways[OURS].passes, False, ())

    candidates = [way.candidate(name) for name, way in ways.items()]
    sides = timed_sides(interleave(candidates, device=device, seconds=settings.seconds))
    for name, way in ways.items():
        side = sides[name]
        side.agreement = found.get(name)
        side.extrapolated_from = way.extrapolated_from
        side.peak_bytes = peak_bytes(way.first, device)
        side.figures = figures(side, way, shape)
    if needed > MOST_BYTES:
        sides[shape.decoder] = Side(
            agreement=found[shape.decoder], verdict=f"does not fit: needs {needed / 1e9:.1f} GB"
        )
    else:
        sides[shape.decoder].figures["head_seconds"] = median(ways[shape.decoder], lambda one: one.head / one.forwards)
        sides[shape.decoder].reason = reason(sides[OURS], sides[shape.decoder], shape)
    return Record("decode", shape.case(), sides, {"tokens": float(shape.batch * shape.generated)})


def decode(how: Decode, model: Any, shape: Shape, device: str) -> Call:
    """A decode of `shape`, its draws the same at every call."""
    given = prompts(shape, device)

    def call() -> Tensor:
        torch.manual_seed(0)
        return how(model, given, shape)

    return call


def first_step(model: Any, call: Call) -> Call:
    return lambda: passes(model, call, most=1)


def needed_bytes(system: System, model: Any, shape: Shape, device: str) -> int:
    """What the baseline would have in use at its peak: that of a step with one prompt, times the prompts of a pass."""
    one = decode(system.baseline, model, replace(shape, batch=1), device)
    return peak_bytes(first_step(model, one), device) * system.rows(shape.batch)


def whole(model: Any, call: Call, device: str) -> Way:
    """A decode that is timed whole. What is done once in a process, the check has done already."""
    watched = split(model, call, device)
    return Way(call, first_step(model, call), watched.passes, False, [watched])


def baseline_way(system: System, model: Any, shape: Shape, ours: Way, longest: float, device: str) -> Way:
    """The baseline whole, or where that would last longer than `longest` seconds, a step of it."""
    baseline = decode(system.baseline, model, shape, device)
    step = first_step(model, decode(system.baseline, model, shape.half_done, device))
    paced = ours.passes
    if system.paced is not None:
        paced = passes(model, decode(system.paced, model, shape, device))
    forwards = paced.rows // system.rows(shape.batch)
    step()
    if Stopwatch(device).sample(Candidate("a step", lambda _: step()), 1) * forwards <= longest:
        return whole(model, baseline, device)
    watched = [split(model, step, device) for _ in range(WATCHED_STEPS)]
    return Way(step, first_step(model, baseline), Passes(forwards, paced.rows), True, watched)


def median(way: Way, of: Callable[[Split], float]) -> float:
    return statistics.median(of(one) for one in way.watched)


def figures(side: Side, way: Way, shape: Shape) -> dict[str, float]:
    """Throughput and latency from the median of the timed rounds; what is outside the model from the watched calls."""
    assert side.seconds is not None
    seconds, tokens = side.seconds.median, shape.batch * shape.generated
    found = {
        "forwards": way.passes.forwards,
        "tokens_per_forward": tokens / way.passes.rows,
        "latency_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "step_seconds": seconds / way.passes.forwards,
    }
    if way.watched:
        found["outside_seconds"] = median(way, lambda one: one.outside / one.forwards)
        found["outside_share"] = median(way, lambda one: one.outside / one.whole)
    return found


def reason(ours: Side, baseline: Side, shape: Shape) -> str | None:
    """Why the baseline is faster, where it is and we know."""
    assert baseline.ratio is not None
    mine, theirs = (side.figures["outside_seconds"] for side in (ours, baseline))
    if baseline.ratio.median >= 1 or mine <= theirs or shape.vocab > SMALL_VOCAB:
        return None
    return (
        f"rows of {shape.vocab:,} ids cost little to score, so calls decide: a step of ours spends "
        f"{mine * 1e3:.2f} ms outside the model, of theirs {theirs * 1e3:.2f} ms"
    )
