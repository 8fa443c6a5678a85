"""Results as one page of Markdown: docs/benchmarks.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from ..harness.results import Results
from .method import CPU_ONLY, REPRODUCE, machine_facts, method
from .plots import pictures
from .summary import SUITES, fastest_table, headline, losses, suite_tables, summary_table
from .tables import SLOWER, Entry, Table
from .views import View, views

#: Rows of a table that is shown at once; a longer one has to be unfolded.
MOST_ROWS = 8

AS_ABOVE = "Drawn as the picture above."


def page(results: Results, folder: str = "benchmarks") -> str:
    """The whole page.

    Args:
        folder: of the pictures, relative to the page.
    """
    parts = [
        "# Benchmarks",
        "",
        paragraph(
            "Written by `mdlm-fast report` from the results file of `mdlm-fast bench`; not edited by hand. Times are "
            "medians with quartiles, ratios are seconds of the baseline over seconds of ours in the same rounds: "
            f"above 1, ours is faster, below 1 it says {SLOWER}."
        ),
    ]
    for view in views(results):
        parts += machine_section(view, folder)
    parts += ["## How it was measured", ""]
    for name, text in method():
        parts.append(paragraph(f"**{name}.** {text}"))
    parts += ["## Reproducing", "", "```", REPRODUCE, "```"]
    return "\n".join(parts).rstrip() + "\n"


def machine_section(view: View, folder: str) -> Iterator[str]:
    """Everything of one machine."""
    yield f"## {view.machine}"
    yield ""
    yield paragraph("; ".join(f"{name}: {value}" for name, value in machine_facts(view)[1:]) + ".")
    if view.newest["device"] == "cpu":
        yield paragraph(CPU_ONLY)
    if headline(view):
        yield paragraph(f"**{headline(view)}**")
    for suite in SUITES:
        fastest, each = fastest_table(view, suite), summary_table(view, suite)
        if fastest is not None:
            yield from with_title(fastest, len(fastest.rows))
        if each is not None:
            yield from with_title(each, 0 if fastest else len(each.rows))
    lost = losses(view)
    if lost is not None:
        yield f"### {lost.title}"
        yield ""
        yield markdown_table(lost)
    drawn = list(pictures(view))
    for suite, title in SUITES.items():
        tables = list(suite_tables(view, suite))
        if not tables:
            continue
        yield f"### {title}"
        yield ""
        said = ""
        for picture in drawn:
            if picture.suite == suite:
                yield f"![{picture.title}]({folder}/{picture.name}.png)"
                yield ""
                yield paragraph(f"*{AS_ABOVE if picture.caption == said else escaped(picture.caption)}*")
                said = picture.caption
        for table in tables:
            yield from with_title(table)


def with_title(table: Table, most_rows: int = MOST_ROWS) -> Iterator[str]:
    """Title, table and notes; a table of more rows folded."""
    subtitle = f": {table.subtitle}" if table.subtitle else ""
    if len(table.rows) > most_rows:
        yield f"<details><summary><b>{table.title}</b>{subtitle} ({len(table.rows)} rows)</summary>"
    else:
        yield f"**{table.title}**{subtitle}"
    yield ""
    yield markdown_table(table)
    for note in table.notes:
        yield paragraph(escaped(note))
    if len(table.rows) > most_rows:
        yield "</details>"
        yield ""


def markdown_table(table: Table) -> str:
    """Head and rows, a line break behind them; numbers to the right."""
    lines = [
        "| " + " | ".join(column.name for column in table.columns) + " |",
        "|" + "|".join("--:" if column.numeric else "---" for column in table.columns) + "|",
    ]
    lines += ["| " + " | ".join(cell(entry) for entry in row) + " |" for row in table.rows]
    return "\n".join(lines) + "\n"


def cell(entry: Entry) -> str:
    """The figure with its details in brackets; a loss in bold and by a word."""
    text = escaped(entry.text)
    if entry.loss:
        text = f"**{text} {SLOWER}**"
    return f"{text} ({escaped('; '.join(entry.details))})" if entry.details else text


def escaped(text: str) -> str:
    """Text whose ~, |, * and < mean themselves."""
    for character in "~|*<":
        text = text.replace(character, f"\\{character}")
    return text


def paragraph(text: str) -> str:
    """Text in lines of at most 120 characters, a line break behind it."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"
