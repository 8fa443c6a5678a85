"""Numbers with units, and names of what was measured, as every table and picture writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..harness.spread import Spread

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}
#: Fields of a case in the order of columns, as a heading calls them.
FIELDS = {
    "decoder": "decoder",
    "method": "method",
    "task": "task",
    "setting": "setting",
    "head": "head",
    "op": "op",
    "variant": "variant",
    "layout": "layout",
    "dtype": "dtype",
    "temperature": "T",
    "rows": "rows N",
    "vocab": "vocabulary V",
    "hidden": "width H",
    "batch": "batch B",
    "length": "length L",
    "generated": "generated G",
    "prompt": "prompt",
    "steps": "steps S",
    "updates": "updates µ",
    "threads": "threads",
}


def significant(value: float, digits: int = 3) -> str:
    """A number to so many significant digits, never in powers of ten: "0.0123", "4.60", "126,464"."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}"


def second_unit(value: float) -> tuple[float, str]:
    """What to multiply seconds of this size with, and the unit it then has."""
    if value < 1e-3:
        return 1e6, "µs"
    return (1e3, "ms") if value < 1 else (1.0, "s")


def seconds(value: float) -> str:
    """E.g. "12.3 µs"."""
    factor, unit = second_unit(value)
    return f"{significant(value * factor)} {unit}"


def seconds_range(spread: Spread) -> str:
    """The quartiles in the unit that `seconds` gives the median, without it."""
    factor, _ = second_unit(spread.median)
    return f"{significant(spread.low * factor)}–{significant(spread.high * factor)}"


def times(value: float) -> str:
    """A ratio, e.g. "4.61×", "27.1×", "312×". One below 1 never reads 1: "0.998×"."""
    if 0.995 <= value < 1:
        return f"{min(value, 0.999):.3f}×"
    return f"{value:,.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}×"


def times_range(low: float, high: float) -> str:
    """E.g. "4.43–4.48"; one number where the ends do not differ in it."""
    ends = dict.fromkeys(times(end)[:-1] for end in (low, high))
    return "–".join(ends)


def storage(count: float) -> str:
    """Bytes in decimal units, e.g. "64.8 MB". Peaks are exact to about a megabyte, so less than one is just that."""
    if count < 1e6:
        return "<1 MB"
    factor, unit = (1e9, "GB") if count >= 1e9 else (1e6, "MB")
    return f"{significant(count / factor)} {unit}"


def percent(share: float) -> str:
    """E.g. "83%"."""
    return f"{100 * share:.0f}%" if share >= 0.0995 or share == 0 else f"{100 * share:.1f}%"


def value(field: str, found: Any) -> str:
    """A field's value in a table."""
    if field == "dtype":
        return DTYPES.get(found, str(found))
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return str(found)
    return f"{found:,}" if isinstance(found, int) else f"{found:g}"


def heading(field: str) -> str:
    """A field's name in a table; what is not known stays as it is."""
    return FIELDS.get(field, field.replace("_", " "))


def described(case: Mapping[str, Any]) -> str:
    """Fields with their values, e.g. "bf16, N = 32, V = 126,464"; lines break only between them."""
    parts = []
    for field in sorted(case, key=field_order):
        symbol = heading(field).split()[-1]
        plain = isinstance(case[field], str)
        parts.append(value(field, case[field]) if plain else f"{symbol}\u00a0=\u00a0{value(field, case[field])}")
    return ", ".join(parts)


def field_order(field: str) -> tuple[int, str]:
    """Sorts fields as FIELDS does, unknown ones behind."""
    return (list(FIELDS).index(field) if field in FIELDS else len(FIELDS)), field


def case_order(case: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Sorts cases by their fields: numbers by size, dtypes as DTYPES does, other texts by letter."""
    key = []
    for field in sorted(case, key=field_order):
        found = case[field]
        if field == "dtype" and found in DTYPES:
            found = list(DTYPES).index(found)
        elif field == "setting" and "=" in str(found):  # "steps=8" stands before "steps=12"
            found = float(str(found).partition("=")[2])
        number = isinstance(found, (int, float))
        key.append((field, float(found) if number else 0.0, "" if number else str(found)))
    return key
