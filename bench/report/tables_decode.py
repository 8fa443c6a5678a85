"""Tables of whole decodes and of their quality."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from ..harness.results import OURS, Record, Side
from . import wording
from .derived import baselines
from .tables import (
    Column,
    Entry,
    Table,
    against,
    case_columns,
    case_entries,
    case_heads,
    check_note,
    mark,
    notes,
    number,
    own_seconds,
    seconds,
)
from .views import grouped

#: Systems that are published with a cache of keys and values of blocks that are decoded already.
CACHED = ("Fast-dLLM", "dInfer, torch.compile")


def cache_note(decoders: Iterable[str]) -> str:
    """What decodes as these systems go without, in a sentence."""
    found = set(decoders)
    having = [name for name in CACHED if name in found]
    published = f" Published with such a cache, and here without it: {'; '.join(having)}." if having else ""
    return f"Keys and values are cached on neither side.{published}"


def decode_tables(records: Sequence[Record]) -> Iterator[Table]:
    """One a baseline: tokens a second, latency, passes, and where the time goes."""
    for decoder, chosen in grouped(records, lambda record: str(record.case.get("decoder", ""))).items():
        yield decode_table(decoder, chosen)


def decode_table(decoder: str, records: Sequence[Record]) -> Table:
    """Ours beside one baseline."""
    from ..suites.decode.cell import CAPTURED  # seconds of imports, for decodes alone

    names, constant = case_columns(records, ("decoder",))
    captured = any(CAPTURED in record.sides for record in records)
    heads = [
        *case_heads(names, records),
        Column("ratio", hint=f"time of {decoder} over ours, in the same rounds"),
        Column("tokens/s", hint="generated tokens of the whole batch: ours / theirs"),
        Column("latency, ours", hint="seconds of a whole batch: median and quartiles"),
        Column("latency, theirs"),
        *([Column("latency, captured", hint="ours, its steps captured in CUDA graphs")] if captured else []),
        Column("passes", hint="forward passes of the model, the same on both sides unless both are named"),
        Column("tokens a pass", hint="committed by one forward pass, of all sequences"),
        Column("outside model", hint="share of a step spent outside the model's body: ours / theirs"),
    ]
    rows = []
    for record in records:
        ours = record.sides.get(OURS, Side())
        theirs = next(iter(baselines(record).values()), None)
        other = theirs or Side()
        rows.append(
            [
                *case_entries(names, record),
                against(theirs, with_peak=False),
                pair(ours, other, "tokens_per_second", wording.significant),
                own_seconds(record),
                seconds(other.seconds, mark(other)),
                *(
                    [seconds(record.sides[CAPTURED].seconds) if CAPTURED in record.sides else Entry()]
                    if captured
                    else []
                ),
                passes(ours, other),
                number(ours.figures.get("tokens_per_forward")),
                pair(ours, other, "outside_share", wording.percent),
            ]
        )
    below = [*notes(records), cache_note([decoder]), check_note(records)]
    return Table(f"Decoding as {decoder}", heads, rows, constant, [line for line in below if line])


def pair(ours: Side, theirs: Side, name: str, text: Callable[[float], str]) -> Entry:
    """A figure of both sides; "–" for one that has none."""
    values = [side.figures.get(name) for side in (ours, theirs)]
    if values == [None, None]:
        return Entry()
    texts = ["–" if found is None else text(found) for found in values]
    return Entry(f"{texts[0]} / {mark(theirs) if values[1] is not None else ''}{texts[1]}", key=values[0])


def passes(ours: Side, theirs: Side) -> Entry:
    """Forward passes; both numbers where they differ."""
    found = ours.figures.get("forwards")
    if found is None:
        return Entry()
    other = theirs.figures.get("forwards", found)
    return Entry(f"{found:g}" if other == found else f"{found:g} / {other:g}", key=found)


def quality_tables(records: Sequence[Record]) -> Iterator[Table]:
    """One a task: accuracy beside passes, latency and throughput."""
    for task, chosen in grouped(records, lambda record: str(record.case.get("task", ""))).items():
        yield quality_table(task, chosen)


def quality_table(task: str, records: Sequence[Record]) -> Table:
    """A row a decoder and setting."""
    names, constant = case_columns(records, ("task",))
    sides = [record.sides.get(OURS, Side()) for record in records]
    known = {
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "puzzles",
        "forwards",
        "tokens_per_forward",
        "latency_seconds",
    }
    found = dict.fromkeys(name for side in sides for name in side.figures if name not in known)
    # tokens a second are puzzles a second times the tokens of an answer, which is always as long
    extra = [name for name in found if not name.endswith("_tokens_per_second")]
    timed = any(side.seconds for side in sides)
    heads = [
        *case_heads(names, records),
        Column("accuracy", hint="share of puzzles solved, with a 95% interval"),
        Column("passes", hint="forward passes of the model a puzzle"),
        Column("tokens a pass"),
        *([Column("latency", hint="seconds of one puzzle alone: median and quartiles")] if timed else []),
        *(Column(name.replace("_per_second", "/s").replace("_", " ")) for name in extra),
    ]
    rows = []
    for record, side in zip(records, sides, strict=True):
        row = [*case_entries(names, record), accuracy(side), number(side.figures.get("forwards"))]
        row.append(number(side.figures.get("tokens_per_forward")))
        row += [own_seconds(record)] if timed else []
        rows.append(row + [figure(name, side.figures.get(name)) for name in extra])
    puzzles = sorted({side.figures["puzzles"] for side in sides if "puzzles" in side.figures})
    held_out = f"{' and '.join(f'{count:,}' for count in puzzles)} held-out puzzles" if puzzles else ""
    below = notes(records)
    if any(name.startswith("batch_64_") for name in extra):
        below.append("Throughput at batch 64 is of the one evaluation that gave the accuracy, without a spread.")
    return Table(f"Accuracy: {task}", heads, rows, ", ".join(filter(None, (constant, held_out))), below)


def accuracy(side: Side) -> Entry:
    """In per cent, with its interval."""
    found = side.figures.get("accuracy")
    if found is None:
        return Entry()
    ends = [side.figures.get(name) for name in ("accuracy_low", "accuracy_high")]
    details = (f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f}",) if ends[0] is not None and ends[1] is not None else ()
    return Entry(f"{100 * found:.1f}%", details, found)


def figure(name: str, found: float | str | None) -> Entry:
    """A further figure by its name's unit."""
    if found is None or isinstance(found, str):
        return Entry(found or "")
    if "seconds" in name.split("_") and "per_second" not in name:
        return Entry(wording.seconds(found), key=found)
    return number(found)
