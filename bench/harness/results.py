"""The results file: one record a cell, merged in place, so that a benchmark that is stopped loses nothing.

A cell is a suite and a case (op, dtype, rows, ...). Its record holds every side that was timed in the same rounds and
names the run, whose entry says on which machine, with which versions and when. A cell measured again on the same
machine replaces its record; other machines' records stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mdlm_fast.files import whole_file

from .spread import Spread, ratio

FORMAT = 1
#: Sides that are no published system: this package, the same on one thread, reading the op's bytes and nothing else,
#: and what a machine's ceiling is measured by.
OURS, ONE_THREAD, READ, CEILING = "ours", "ours, 1 thread", "read", "ceiling"


@dataclass
class Side:
    """One way of doing a cell's work.

    Attributes:
        seconds: of the cell's whole work; None where it was not timed.
        ratio: this side's seconds over those of "ours" in the same rounds (above 1: ours is faster); None for ours.
        agreement: how its answer compares with ours, checked before timing, e.g. "equal tokens, log-probs to 2e-7".
        peak_bytes: the most memory in use beyond its inputs; None: not measured.
        extrapolated_from: what was run where the whole was not, e.g. "1 of 64 steps"; None: all of it ran.
        verdict: why there is no time, e.g. "does not fit: 19.4 GB"; None where there is one.
        reason: why this side is faster than ours, where it is.
        figures: whatever else the suite measures, numbers by name (forwards, tokens_per_second, ...).
    """

    seconds: Spread | None = None
    ratio: Spread | None = None
    agreement: str | None = None
    peak_bytes: int | None = None
    extrapolated_from: str | None = None
    verdict: str | None = None
    reason: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class Record:
    """A cell's result.

    Attributes:
        suite: "kernels", "decode", "quality" or "rl".
        case: what was measured, JSON values by name.
        sides: by name; "ours" is this package.
        work: what every side does, by name: bytes (that must be read or written at least), operations
            (floating-point), tokens, ...
        run: of `Results.runs`.
    """

    suite: str
    case: dict[str, Any]
    sides: dict[str, Side]
    work: dict[str, float] = field(default_factory=dict)
    run: str = ""


def timed_sides(samples: Mapping[str, Sequence[float]], ours: str = OURS) -> dict[str, Side]:
    """Sides of what `timing.interleave` returned, with ratios against `ours` over the rounds that both took part in."""
    return {
        name: Side(Spread.of(values), None if name == ours else ratio(values, samples[ours]))
        for name, values in samples.items()
    }


@dataclass
class Results:
    """Records and the runs they come from.

    Attributes:
        runs: environments (`machine.environment`) by run id.
        records: one a cell and machine.
    """

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)

    @staticmethod
    def load(path: Path) -> Results:
        """Reads a results file; an absent one is empty.

        Raises:
            ValueError: it is not a results file, or of a newer format.
        """
        if not path.exists():
            return Results()
        try:
            content = json.loads(path.read_text())
            if content["format"] != FORMAT:
                raise ValueError(f"{path} has format {content['format']}; this version reads format {FORMAT}")
            return Results(content["runs"], [read_record(record) for record in content["records"]])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a file that `mdlm-fast bench` wrote ({error!r})") from error

    def save(self, path: Path) -> None:
        """Writes the file whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        records = [asdict(record) for record in sorted(self.records, key=lambda record: self.key(record))]
        content = {"format": FORMAT, "runs": self.runs, "records": records}
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")

    def start_run(self, environment: dict[str, Any]) -> str:
        """Adds a run; its id."""
        run = f"{environment['machine']} {environment['date']} {environment['commit']}"
        self.runs[run] = environment
        return run

    def put(self, record: Record, run: str) -> None:
        """Adds a record of a run in the place of the one of the same cell and machine; drops runs nobody names."""
        record.run = run
        self.drop(record.suite, record.case, run)
        self.records.append(record)
        named = {other.run for other in self.records} | {run}
        self.runs = {name: environment for name, environment in self.runs.items() if name in named}

    def drop(self, suite: str, case: dict[str, Any], run: str) -> None:
        """Removes the record that a run's record of this cell would have replaced."""
        key = self.key(Record(suite, case, {}, run=run))
        self.records = [record for record in self.records if self.key(record) != key]

    def key(self, record: Record) -> str:
        """Machine, suite and case: what at most one record has."""
        return json.dumps([self.runs[record.run]["machine"], record.suite, sorted(record.case.items())])

    def machines(self) -> list[str]:
        """Names of the machines, in the order of their first run."""
        return list(dict.fromkeys(run["machine"] for run in self.runs.values()))

    def select(self, suite: str, machine: str | None = None, **case: Any) -> Iterator[Record]:
        """Records of a suite, of one machine where it is given, whose case has these values."""
        for record in self.records:
            if (
                record.suite == suite
                and machine in (None, self.runs[record.run]["machine"])
                and all(record.case.get(name) == value for name, value in case.items())
            ):
                yield record


def read_record(content: dict[str, Any]) -> Record:
    """A record from JSON."""
    return Record(**{**content, "sides": {name: read_side(side) for name, side in content["sides"].items()}})


def read_side(content: dict[str, Any]) -> Side:
    spreads = {name: Spread(**content[name]) if content[name] else None for name in ("seconds", "ratio")}
    return Side(**{**content, **spreads})
