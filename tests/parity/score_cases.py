"""Cases of the scoring ops: which rows, which options, which layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from parity.inputs import VALUES, placed, seeded, whole_numbers
from parity.measure import Case, Check, Measurement, Target, differing
from parity.scores import Head, ScoreProblem
from torch import Generator

from mdlm_fast import ops

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FULL_VOCABULARY = 126464

Options = Callable[[Generator, tuple[int, ...], int], dict[str, Any]]


def _seeds(g: Generator, count: int) -> torch.Tensor:
    return torch.randint(-(2**62), 2**62, (count,), generator=g)


def sequences(g: Generator, leading: tuple[int, ...], width: int) -> dict[str, Any]:
    """Temperatures (0 among them), seeds and steps per sequence; rows in any order, with padding among them."""
    batch, length = leading
    rows = torch.randperm(batch * length, generator=g).int()
    rows[torch.randperm(rows.numel(), generator=g)[: rows.numel() // 5]] = -1
    return {
        "rows": rows,
        "row_position": torch.randint(0, 5000, rows.shape, generator=g).int(),
        "temperature": torch.rand(batch, generator=g) * 1.5 * (torch.arange(batch) != 1),
        "seeds": _seeds(g, batch),
        "step": torch.randint(0, 300, (batch,), generator=g).int(),
    }


def restricted(g: Generator, leading: tuple[int, ...], width: int) -> dict[str, Any]:
    """Ids that are forbidden twice, unsorted, some at tile ends, and a limit."""
    ids = torch.cat([torch.randint(width, (9,), generator=g), torch.tensor([width - 1, 0, 2047, 2048, 0])])
    return {"forbidden_ids": ids.clamp(max=width - 1), "vocab_limit": max(2, width - 40), "seeds": 5, "step": 3}


def with_options(**options: Any) -> Options:
    return lambda g, leading, width: dict(options)


def combined(first: Options, **options: Any) -> Options:
    return lambda g, leading, width: {**first(g, leading, width), **options}


def guided(g: Generator, leading: tuple[int, ...], width: int) -> dict[str, Any]:
    count = leading[0] * (leading[1] if len(leading) == 2 else 1)
    return {
        "temperature": 0.8,
        "seeds": 7,
        "guidance_scale": 0.5,
        "guidance_rows": torch.randperm(count, generator=g).int(),
    }


OPTIONS: dict[str, Options] = {
    "greedy": with_options(),
    "greedy, logp alone": with_options(stats=("logp",)),
    "tempered": with_options(temperature=0.7, sample=False, stats_from="tempered"),
    "cool": with_options(temperature=0.02, sample=False),
    "sampled": with_options(temperature=0.9, seeds=11, step=17),
    "sampled at 1, tempered": with_options(temperature=1.0, seeds=2, stats_from="tempered"),
    "sequences": sequences,
    "sequences, tempered": combined(sequences, stats_from="tempered"),
    "restricted": combined(restricted, temperature=0.9),
    "restricted, greedy": restricted,
    "over all": combined(restricted, temperature=1.2, normalize_over="all", stats_from="tempered"),
    "over all, greedy": combined(restricted, normalize_over="all"),
    "guided": guided,
    "top-k": with_options(temperature=0.7, seeds=3, top_k=7),
    "top-k, cold": with_options(top_k=3, stats_from="tempered"),
    "top-p": with_options(temperature=1.5, seeds=4, top_p=0.7, stats_from="tempered"),
    "filtered": combined(sequences, top_k=40, top_p=0.9),
    "filtered over all": combined(restricted, temperature=0.8, top_k=9, top_p=0.95, normalize_over="all"),
}


@dataclass(frozen=True)
class Spec:
    """A row of the table below. `reduced`: dtypes in which it is on the short list."""

    values: str
    options: str
    width: int
    leading: tuple[int, ...] = (48,)
    layout: str = "contiguous"
    dtypes: tuple[torch.dtype, ...] = DTYPES
    reduced: tuple[torch.dtype, ...] = ()

    @property
    def name(self) -> str:
        place = "" if self.layout == "contiguous" else f", {self.layout}"
        return f"{self.options}, {self.values} {[*self.leading, self.width]}{place}"

    def problem(self, dtype: torch.dtype) -> ScoreProblem:
        g = seeded(self.name)
        rows = torch.Size(self.leading).numel()
        logits = VALUES[self.values](g, rows, self.width).to(dtype).view(*self.leading, self.width)
        options = OPTIONS[self.options](g, self.leading, self.width)
        if "guidance_scale" in options:
            options["guidance_logits"] = VALUES[self.values](g, rows, self.width).to(dtype).view_as(logits)
        return ScoreProblem(logits, options, self.layout)


BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
SPECS = (
    *(Spec("random", "greedy", width) for width in (1, 2, 31, 2047, 2048, 5001)),
    Spec("random", "greedy", 2049, reduced=(BF16,)),
    *(Spec("random", "sampled", width) for width in (1, 2, 2047, 2049, 9000)),
    Spec("random", "sampled", 31, reduced=DTYPES),
    *(Spec("random", "tempered", width) for width in (2, 31, 2048, 9000)),
    Spec("random", "tempered", 2049, reduced=(F32,)),
    Spec("random", "cool", 5001),
    Spec("random", "greedy, logp alone", 2050, reduced=(F32,)),
    Spec("peaked", "sampled at 1, tempered", 5001, reduced=(F32,)),
    Spec("peaked", "greedy", 2048),
    Spec("tied", "greedy", 9000),
    Spec("tied", "sampled", 4097, reduced=(BF16,)),
    Spec("tied", "top-k", 4097),
    Spec("tied", "top-p", 2049, reduced=(BF16,)),
    Spec("holes", "sampled", 6000),
    Spec("holes", "tempered", 2049, reduced=(F16,)),
    Spec("empty tiles", "sampled", 6000, reduced=(BF16,)),
    Spec("empty tiles", "tempered", 6000),
    Spec("empty tiles", "filtered", 6000, (3, 20)),
    Spec("random", "sequences", 5001, (3, 20), "sliced sequences", reduced=(BF16,)),
    Spec("random", "sequences, tempered", 2100, (3, 20), "misaligned rows", reduced=(F16,)),
    Spec("random", "sequences", 4096, (3, 20), "strided rows"),
    Spec("random", "tempered", 4099, (48,), "misaligned rows"),
    Spec("random", "restricted", 2500, reduced=(BF16,)),
    Spec("random", "restricted, greedy", 9000),
    Spec("random", "over all", 2500, reduced=(BF16,)),
    Spec("random", "over all, greedy", 5001),
    Spec("stepped", "guided", 2500, (3, 20), "misaligned rows", reduced=(BF16,)),
    Spec("stepped", "guided", 9000),
    Spec("random", "top-k", 9000),
    Spec("random", "top-k, cold", 2300, reduced=(F32,)),
    Spec("random", "top-p", 9000),
    Spec("random", "filtered", 2300, (3, 20), reduced=(BF16,)),
    Spec("random", "filtered over all", 5001),
    Spec("flat", "sampled", 9000, (500,)),
    Spec("random", "sampled", FULL_VOCABULARY, (32,), dtypes=(BF16, F32)),
    Spec("random", "tempered", FULL_VOCABULARY, (32,), dtypes=(BF16, F32)),
    Spec("flat", "filtered", FULL_VOCABULARY, (2, 16), dtypes=(BF16,)),
)

# Options whose two halves, `score_partials` and `finish_scores`, are checked too.
COMPOSED = ("greedy", "tempered", "sequences, tempered", "over all", "over all, greedy", "guided", "filtered")
COMPOSED_REDUCED = ("greedy", "sequences, tempered", "guided", "filtered")


def score_cases() -> Iterator[Case]:
    for spec in SPECS:
        for dtype in spec.dtypes:
            reduced = dtype in spec.reduced
            yield Case("score_rows", spec.name, dtype, ("score_rows",), _build(spec, dtype), reduced)
            if spec.options in COMPOSED and spec.width < FULL_VOCABULARY:
                halves = ("score_partials", "finish_scores")
                build = _build(spec, dtype, halves=True)
                reduced = reduced and spec.options in COMPOSED_REDUCED
                yield Case("finish_scores", spec.name, dtype, (*halves, "score_rows"), build, reduced)


def _build(spec: Spec, dtype: torch.dtype, halves: bool = False) -> Callable[[], Check]:
    def build() -> Check:
        problem = spec.problem(dtype)

        def check(target: Target) -> Iterator[Measurement]:
            chosen = problem.thinned() if target.interpreted else problem
            return check_halves(chosen, target) if halves else chosen.check(chosen.score(target))

        return check

    return build


def check_halves(problem: ScoreProblem, target: Target) -> Iterator[Measurement]:
    """Two shards of partials, put together and finished, are `score_rows` bit for bit; ids and maxima are exact."""
    options = target.put(problem.options)
    logits = placed(problem.logits, problem.layout, target.device)
    kept = ("rows", "row_sequence", "temperature", "forbidden_ids", "normalize_over", "stats_from", "guidance_scale")
    common = {name: options[name] for name in (*kept, "guidance_rows") if name in options}
    common["vocab_limit"] = options.get("vocab_limit", problem.logits.shape[-1])
    guidance = options.get("guidance_logits")
    cut = min(2048, problem.logits.shape[-1])
    shards = [(0, cut)] + ([(cut, problem.logits.shape[-1])] if cut < problem.logits.shape[-1] else [])

    def partials(logits: torch.Tensor, guidance: torch.Tensor | None, common: dict[str, Any]) -> torch.Tensor:
        parts = []
        for low, high in shards:
            other = {} if guidance is None else {"guidance_logits": guidance[..., low:high]}
            parts.append(ops.score_partials(logits[..., low:high], vocab_start=low, **common, **other))
        return torch.cat(parts, 1)

    with ops.use_backend(target.backend):
        ours = partials(logits, guidance, common)
        finished = ops.finish_scores(ours, logits=logits, **options)
        whole = ops.score_rows(logits, **options)
    with ops.use_backend("reference"):
        host = {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in common.items()}
        expected = partials(problem.logits, problem.options.get("guidance_logits"), host)
    ids, values = (1, 3), (0, 2, 4)
    bits, expected_bits = ours.cpu().view(torch.int32), expected.view(torch.int32)
    yield differing("ids of partials", bits[..., ids], expected_bits[..., ids])
    yield differing("maxima of partials", ours[..., values], expected[..., values])
    for field, name in ((5, "rest"), (6, "mass_rest"), (7, "moment")):
        scale = expected[..., field].abs().clamp(min=1e-30)
        error = (ours[..., field].cpu() - expected[..., field]).abs() / scale
        yield Measurement(f"{name} of partials, relative", float(error.max()), 2e-5)
    for name, a, b in zip(whole._fields, finished, whole, strict=True):
        yield differing(f"{name}, finished against whole", a, b.cpu())
    yield from problem.check(finished)


@dataclass(frozen=True)
class LinearSpec:
    options: str
    leading: tuple[int, ...]
    depth: int
    width: int
    bias: bool = True
    layout: str = "contiguous"
    dtypes: tuple[torch.dtype, ...] = DTYPES
    reduced: tuple[torch.dtype, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.options}, hidden {[*self.leading, self.depth]}, V={self.width}, {self.layout}, bias {self.bias}"

    def problem(self, dtype: torch.dtype) -> ScoreProblem:
        g = seeded(self.name)
        hidden, guidance = (whole_numbers(g, *self.leading, self.depth, depth=self.depth) for _ in range(2))
        weight = whole_numbers(g, self.width, self.depth, depth=self.depth)
        bias = whole_numbers(g, self.width, depth=self.depth) if self.bias else None
        options = OPTIONS[self.options](g, self.leading, self.width)
        if "guidance_scale" in options:
            options["guidance_logits"] = F.linear(guidance, weight, bias).to(dtype)
        head = Head(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        if "guidance_scale" in options:
            head = head._replace(guidance=guidance.to(dtype))
        return ScoreProblem(F.linear(hidden, weight, bias).to(dtype), options, self.layout, head)


LINEAR_SPECS = (
    LinearSpec("greedy", (40,), 33, 2049, reduced=(F32,)),
    LinearSpec("sampled", (48,), 64, 5001),
    LinearSpec("sequences", (3, 20), 24, 2100, layout="sliced sequences", reduced=(BF16,)),
    LinearSpec("tempered", (3, 50), 128, 9000, bias=False),
    LinearSpec("over all", (40,), 40, 4100, layout="misaligned rows"),
    LinearSpec("filtered", (3, 20), 24, 2100, reduced=(F16,)),
    LinearSpec("guided", (3, 20), 40, 2500),
    LinearSpec("restricted", (300,), 512, 5001, bias=False),
    LinearSpec("sampled", (1,), 1, 31),
    LinearSpec("sampled", (33,), 256, FULL_VOCABULARY, bias=False, dtypes=(BF16,)),
)


def linear_cases() -> Iterator[Case]:
    for spec in LINEAR_SPECS:
        for dtype in spec.dtypes:
            build = _build_linear(spec, dtype)
            yield Case("linear_score_rows", spec.name, dtype, ("linear_score_rows",), build, dtype in spec.reduced)


def _build_linear(spec: LinearSpec, dtype: torch.dtype) -> Callable[[], Check]:
    def build() -> Check:
        problem = spec.problem(dtype)

        def check(target: Target) -> Iterator[Measurement]:
            chosen = problem.thinned() if target.interpreted else problem
            return chosen.check(chosen.score_head(target))

        return check

    return build
