"""Results as tables in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from ..harness.results import Record, Results
from . import wording
from .summary import SUITES, fastest_table, headline, suite_tables, summary_table
from .tables import SLOWER, Entry, Table
from .views import View, views


def show(records: list[Record], results: Results, console: Console) -> None:
    """Prints records of one or several suites.

    Args:
        records: to be shown; they are among those of `results`.
        results: whose runs say on which machine each was measured.
        console: where to.
    """
    shown = Results(results.runs, records)
    for view in views(shown):
        console.print(escape(view.machine), style="bold", highlight=False)
        for suite in SUITES:
            for table in suite_tables(view, suite):
                show_table(table, console)
            summary = fastest_table(view, suite) or summary_table(view, suite)
            if summary is not None:
                show_table(summary, console)
        show_headline(view, console)


def show_table(table: Table, console: Console) -> None:
    """One table, notes below it."""
    title = Text(table.title, style="bold")
    if table.subtitle:
        title.append(f"  {table.subtitle}", style="not bold dim")
    drawn = RichTable(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in table.columns:
        drawn.add_column(Text(column.name), justify="right" if column.numeric else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(rendered(entry) for entry in row))
    console.print()
    console.print(title)
    console.print(drawn)
    for note in table.notes:
        console.print(Padding(Text(note, style="dim"), (0, 0, 0, 2)))


def rendered(entry: Entry) -> Text:
    """The figure, with its details on lines below it; a loss in another colour and by a word."""
    text = Text(entry.text)
    if entry.loss:
        text = Text(f"{entry.text} {SLOWER}", style="bold red")
    for detail in entry.details:
        text.append(f"\n{detail}", style="not bold dim")
    return text


def show_headline(view: View, console: Console) -> None:
    """Wins and losses in one sentence."""
    sentence = headline(view)
    if sentence:
        console.print()
        console.print(sentence, highlight=False)
        console.print(
            "Ratios are seconds of the baseline over ours, paired by round: medians with quartiles; "
            f"{wording.times(1)} and above: ours is as fast or faster.",
            style="dim",
            highlight=False,
        )
