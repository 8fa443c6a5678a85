"""Results as a report looks at them: one machine at a time, in groups, at the centre of a group, along an axis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..harness.results import Record, Results
from .wording import case_order

Key = TypeVar("Key")

#: Where the axes of the small sets cross; the full sets measure every value equally often.
CENTRE: dict[str, Any] = {
    "dtype": "bfloat16",
    "rows": 32,
    "vocab": 126_464,
    "hidden": 256,
    "batch": 1,
    "generated": 64,
    "layout": "block",
    "temperature": 0.0,
    "head": "trained",
}
#: Fields that follow from an axis, by suite and axis: a decode of twice the length takes twice the steps.
FOLLOWING = {("decode", "generated"): ("steps",)}


@dataclass(frozen=True)
class View:
    """What was measured on one machine.

    Attributes:
        machine: its name.
        environments: of the runs (`machine.environment`), the newest last.
        records: in the order of their cases.
    """

    machine: str
    environments: list[dict[str, Any]]
    records: list[Record]

    @property
    def newest(self) -> dict[str, Any]:
        """The newest run's environment."""
        return self.environments[-1]

    @property
    def threads(self) -> int:
        """CPU threads of "ours"."""
        return int(self.newest.get("threads", 1))

    def suite(self, name: str) -> list[Record]:
        """Records of a suite."""
        return [record for record in self.records if record.suite == name]


def views(results: Results) -> Iterator[View]:
    """Every machine that has records, in the order of their first run."""
    for machine in results.machines():
        records = [record for record in results.records if results.runs[record.run]["machine"] == machine]
        if records:
            named = {record.run for record in records}
            runs = [run for name, run in results.runs.items() if name in named]
            records.sort(key=lambda record: (record.suite, case_order(record.case)))
            yield View(machine, sorted(runs, key=lambda run: str(run["date"])), records)


def grouped(records: Iterable[Record], key: Callable[[Record], Key]) -> dict[Key, list[Record]]:
    """Records by key, in the order in which keys are met."""
    groups: dict[Key, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def fields(records: Sequence[Record]) -> list[str]:
    """Fields that any of the cases has."""
    return list(dict.fromkeys(field for record in records for field in record.case))


def varying(records: Sequence[Record]) -> list[str]:
    """Fields in which the cases differ."""
    return [field for field in fields(records) if len({record.case.get(field) for record in records}) > 1]


def central_value(records: Sequence[Record], field: str) -> Any:
    """The commonest value of a field, which is where a cross of cells has its centre; among equals that of CENTRE."""
    counts = Counter(record.case.get(field) for record in records)
    most = max(counts.values())
    common = [found for found, count in counts.items() if count == most]
    return CENTRE[field] if CENTRE.get(field) in common else common[0]


def centre(records: Sequence[Record]) -> Record:
    """The record with the most central values."""
    values = {field: central_value(records, field) for field in varying(records)}
    return max(records, key=lambda record: sum(record.case.get(field) == found for field, found in values.items()))


def along(records: Sequence[Record], axis: str) -> list[Record]:
    """Records that differ in one field alone, the others central; ascending, one a value. Empty without two values.

    Args:
        records: of one op, decoder or method.
        axis: the field, of numbers.
    """
    having = [record for record in records if isinstance(record.case.get(axis), (int, float))]
    free = (axis, *(name for record in having[:1] for name in FOLLOWING.get((record.suite, axis), ())))
    values = {field: central_value(having, field) for field in varying(having) if field not in free}
    line = [record for record in having if all(record.case.get(field) == found for field, found in values.items())]
    by_size = {record.case[axis]: record for record in line}
    return [by_size[size] for size in sorted(by_size)] if len(by_size) > 1 else []
