"""`score_rows` against what published decoders do with the same logits.

Every variant stands beside the systems that do such work: greedy tokens with their probability, all five statistics,
draws at a temperature, draws from what top-p or top-k leaves. Arguments are on the device already, as in a decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mdlm_fast import ops

from ...baselines import score as baselines
from ...baselines.score import Scored
from ...harness.results import OURS
from ...harness.timing import Candidate
from ..settings import MOST_BYTES, Cell, Settings
from . import arena as arenas
from .agreement import Distribution, described, only, without_ties
from .cell import KernelCell, Prepared, kernel_cell
from .grid import CENTRE, Shape, centre, cross

GREEDY, FIVE, SAMPLED = "token, log-prob", "all five", "T=0.7"
TOP_P, TOP_K = "top-p 0.9, T=0.7", "top-k 50, T=0.7"
CONTROL = "against itself"
DRAWN = {"temperature": 0.7, "stats": ("token", "logp", "logp_T")}

#: Keywords of `score_rows` by variant.
VARIANTS: dict[str, dict[str, Any]] = {
    GREEDY: {"stats": ("token", "logp")},
    FIVE: {},
    SAMPLED: DRAWN,
    TOP_P: {**DRAWN, "top_p": 0.9},
    TOP_K: {**DRAWN, "top_k": 50},
}

#: Useful operations a logit: compare, subtract, exponential, add; the runner-up's comparison and the entropy's product
#: and sum; for a temperature its factor, another exponential and sum. An exponential counts as one.
OPERATIONS = {GREEDY: 4.0, FIVE: 7.0, SAMPLED: 7.0}

LLADA, FAST, DREAM, MDPO, ROLLOUT = "LLaDA", "Fast-dLLM", "Dream", "MDPO", "EOSER/CJ-GRPO rollout"
DINFER, ARRANGED = "dInfer, torch.compile", "torch.compile, arranged"

#: Bytes, by device; a side that would need more runs on fewer rows. The CPU takes rows one after the other, so that the
#: time of a part tells that of the whole (at the centre all rows fit); few rows would leave a GPU idle.
MOST_TEMPORARIES = {"cpu": 180_000_000, "cuda": MOST_BYTES}
CHECKED_ROWS = 8  # half of them the first, half of them the last
#: Relative to epsilon of 16-bit logits that were divided by a temperature or filtered by 16-bit sums.
TEMPERED_ROUNDING = 24.0

#: What Dream's code does silently when torch refuses its probabilities.
NOT_DRAWN = "all of them likeliest tokens, which it takes where 16-bit probabilities do not add up to 1"

#: Why a baseline may be faster, and below how many logits that is the reason.
FIXED_COST = "so few logits that a call's fixed cost decides, and ours checks its arguments in Python"
FEW_LOGITS = 2**17


@dataclass(frozen=True)
class Baseline:
    """A system's way.

    Attributes:
        function: logits [N, V] to `Scored`.
        distribution: what its tokens are drawn from and its confidence refers to.
        wide: bytes an element of its temporaries in float64, float32 or int64.
        narrow: numbers an element of those in the logits' dtype.
        compiled: whether it is timed under torch.compile.
        across: whether the small set times it at every shape, not at the centre alone.
    """

    function: Callable[[Tensor], Scored]
    distribution: Distribution
    wide: int = 0
    narrow: int = 1
    compiled: bool = False
    across: bool = True

    def timed(self) -> Callable[[Tensor], Scored]:
        return baselines.compiled(self.function) if self.compiled else self.function

    def rows(self, shape: Shape, most: int) -> int:
        """How many rows it runs on if its temporaries may take `most` bytes: all, or a power of two."""
        fitting = most // (shape.vocab * (self.wide + self.narrow * shape.dtype.itemsize))
        return shape.rows if fitting >= shape.rows else 1 << max(0, fitting.bit_length() - 1)


PLAIN = Distribution()
AT_07 = Distribution(0.7)


def tempered(top_p: float | None = None, top_k: int | None = None) -> Distribution:
    return Distribution(0.7, True, top_p, top_k, TEMPERED_ROUNDING)


#: By variant. `partial`s are made once, so that torch.compile meets the same function at every shape.
BASELINES: dict[str, dict[str, Baseline]] = {
    GREEDY: {
        LLADA: Baseline(baselines.llada, PLAIN),
        FAST: Baseline(baselines.fast_dllm, PLAIN, wide=16),
        DINFER: Baseline(baselines.dinfer, PLAIN, wide=4, narrow=0, compiled=True, across=False),
        ARRANGED: Baseline(baselines.likeliest, PLAIN, wide=1, narrow=0, compiled=True),
    },
    FIVE: {
        DREAM: Baseline(baselines.dream_statistics, PLAIN, wide=8, narrow=4),
        MDPO: Baseline(baselines.mdpo_statistics, PLAIN, wide=24, narrow=0, across=False),
        ARRANGED: Baseline(baselines.five_statistics, PLAIN, wide=1, narrow=0, compiled=True),
    },
    SAMPLED: {
        LLADA: Baseline(partial(baselines.llada, temperature=0.7), AT_07, wide=40),
        ROLLOUT: Baseline(partial(baselines.eoser_rollout, temperature=0.7), AT_07, narrow=5),
        FAST: Baseline(partial(baselines.fast_dllm, temperature=0.7), AT_07, wide=40, across=False),
        DINFER: Baseline(
            partial(baselines.dinfer, temperature=0.7), AT_07, wide=16, narrow=0, compiled=True, across=False
        ),
        DREAM: Baseline(partial(baselines.dream, temperature=0.7), tempered(), wide=8, narrow=4, across=False),
        ARRANGED: Baseline(
            partial(baselines.race, temperature=0.7), AT_07, wide=8, narrow=0, compiled=True, across=False
        ),
    },
    TOP_P: {
        DREAM: Baseline(partial(baselines.dream, temperature=0.7, top_p=0.9), tempered(0.9), wide=12, narrow=6),
        MDPO: Baseline(partial(baselines.mdpo, temperature=0.7, top_p=0.9), tempered(0.9), wide=24, narrow=4),
    },
    TOP_K: {
        DREAM: Baseline(partial(baselines.dream, temperature=0.7, top_k=50), tempered(None, 50), wide=8, narrow=5),
        MDPO: Baseline(partial(baselines.mdpo, temperature=0.7, top_k=50), tempered(None, 50), wide=16, narrow=4),
    },
}


def cells(settings: Settings) -> Iterator[Cell]:
    """Three variants over the cross, filters and the control at the centre; in the full set everything everywhere."""
    for shape in cross(settings):
        for variant in VARIANTS:
            if variant in (GREEDY, FIVE, SAMPLED) or shape in centre(settings):
                yield score_cell(shape, variant, settings)
        if shape == CENTRE:
            yield kernel_cell(shape.case("score_rows", CONTROL), partial(control, shape, settings), settings)


def score_cell(shape: Shape, variant: str, settings: Settings) -> KernelCell:
    """A cell of `score_rows`."""
    return kernel_cell(shape.case("score_rows", variant), partial(prepared, shape, variant, settings), settings)


def row_arguments(count: int, device: str, temperature: float | None) -> dict[str, Any]:
    """What a decoder has on the device already, so that no call fills in defaults."""
    rows = torch.arange(count, dtype=torch.int32, device=device)
    return {
        "rows": rows,
        "row_sequence": torch.zeros_like(rows),
        "row_position": rows,
        "temperature": torch.full((1,), temperature or 0.0, device=device),
        "seeds": torch.ones(1, dtype=torch.int64, device=device),
        "step": torch.zeros(1, dtype=torch.int32, device=device),
        "sample": temperature is not None,
    }


def ours(variant: str, rows: int, device: str) -> Callable[[Tensor], ops.RowScores]:
    """`score_rows` of logits [rows, V]."""
    keywords = VARIANTS[variant]
    return partial(ops.score_rows, **(keywords | row_arguments(rows, device, keywords.get("temperature"))))


def prepared(shape: Shape, variant: str, settings: Settings) -> Prepared:
    """Ours and the systems that do this work."""
    arena, device = arenas.arena(shape.dtype, settings.device), settings.device
    chosen = {name: b for name, b in BASELINES[variant].items() if worth_timing(b, shape, settings)}
    parts = {name: b.rows(shape, MOST_TEMPORARIES[device]) for name, b in chosen.items()}
    score = ours(variant, shape.rows, device)

    def window(i: int) -> Tensor:
        return arena.window(i, shape.rows, shape.vocab)

    candidates = [Candidate(OURS, lambda i: score(window(i)))]
    peaks: dict[str, Callable[[], object]] = {OURS: lambda: score(window(0))}
    for name, baseline in chosen.items():
        rows, run = parts[name], baseline.timed()
        part = None if rows == shape.rows else f"{rows} of {shape.rows} rows"
        call = partial(run_part, run, window, rows)
        candidates.append(Candidate(name, call, factor=shape.rows / rows, extrapolated_from=part))
        peaks[name] = partial(call, 0)

    def check() -> dict[str, str]:
        logits = window(0)
        scores = score(logits)
        return {name: agreement(variant, logits, scores, b, parts[name]) for name, b in chosen.items()}

    work = {"bytes": float(shape.nbytes), "tokens": float(shape.rows)}
    if variant in OPERATIONS:
        work["operations"] = OPERATIONS[variant] * shape.elements
    reasons = dict.fromkeys(chosen, FIXED_COST) if shape.elements < FEW_LOGITS else {}
    return Prepared(candidates, check, work, window, peaks, reasons)


def run_part(run: Callable[[Tensor], Scored], window: Callable[[int], Tensor], rows: int, i: int) -> Scored:
    """A system on the first rows of the i-th window."""
    return run(window(i)[:rows])


def worth_timing(baseline: Baseline, shape: Shape, settings: Settings) -> bool:
    """The small set spares what takes long: systems that repeat another's passes, and compilations. One compilation
    serves most of the cross, but one row, a vocabulary of a thousand and each dtype ask for another."""
    if settings.full or shape == CENTRE:
        return True
    compiled_already = shape.dtype == CENTRE.dtype and shape.rows > 1 and shape.vocab > 1_000
    return baseline.across and (compiled_already or not baseline.compiled)


def agreement(variant: str, logits: Tensor, scores: ops.RowScores, baseline: Baseline, count: int) -> str:
    """Compares a system's scores of CHECKED_ROWS rows with ours: as it is timed, and in float64 without ties.

    Args:
        logits: [N, V], of the first call that is timed.
        scores: ours of all these rows, by this variant.
        count: of rows that the system is timed on; here the last of them are the last of `logits`.

    Returns:
        what is equal, and the largest relative difference of probabilities, margins and entropies.

    Raises:
        AssertionError: they differ beyond rounding.
    """
    rows = both_ends(count, len(logits), logits.device)
    part = logits if count == len(logits) else logits[rows]  # [count, V]
    chosen = both_ends(min(CHECKED_ROWS, count), count, logits.device)
    z, distribution = part[chosen], baseline.distribution
    before = generator_state(z.device)
    theirs = baseline.timed()(part)
    timed = described(z, only(scores, rows[chosen]), only(theirs, chosen), distribution)
    if distribution.temperature > 0 and torch.equal(generator_state(z.device), before):
        timed += f", {NOT_DRAWN}"
    z = without_ties(z)
    reference = ours(variant, len(z), z.device.type)(z)
    return f"{described(z, reference, baseline.function(z), distribution)}; {timed}"


def generator_state(device: torch.device) -> Tensor:
    """Of torch's random numbers; a call that leaves it as it was has drawn nothing."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def both_ends(count: int, rows: int, device: torch.device) -> Tensor:
    """int64 [count], row numbers below `rows`: the first ones, and the last min(count, CHECKED_ROWS) / 2."""
    last = min(count, CHECKED_ROWS) // 2
    first = torch.arange(count - last, device=device)
    return torch.cat((first, torch.arange(rows - last, rows, device=device)))


def control(shape: Shape, settings: Settings) -> Prepared:
    """Ours twice, in the same rounds: what differs is the method's own error."""
    single = prepared(shape, GREEDY, settings)
    first = single.candidates[0]
    again = Candidate(f"{OURS} again", first.call)
    return Prepared([first, again], dict, single.work)
