"""Results as one HTML page that needs nothing else: style, script and pictures are in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mdlm_fast.files import whole_file

from ..harness.results import Results
from .method import CPU_ONLY, REPRODUCE, machine_facts, method
from .plots import pictures
from .plots.picture import Picture
from .plots.style import ON_DARK, PAGE, style, svg, variable
from .summary import SUITES, fastest_table, headline, losses, suite_tables, summary_table
from .tables import SLOWER, Table
from .views import View, views

TEMPLATE = "page.html.j2"
MOST_ROWS = 40  # of a table that is shown at once


@dataclass(frozen=True)
class Drawing:
    """A picture as an SVG element; its width is a percentage of the widest's."""

    title: str
    caption: str
    svg: Markup
    width: float


@dataclass(frozen=True)
class Section:
    """A suite on one machine."""

    anchor: str
    title: str
    drawings: list[Drawing]
    tables: list[Table]


@dataclass(frozen=True)
class Chapter:
    """A machine.

    Attributes:
        summaries: ours against the fastest baseline a suite, or the only one, then the losses one by one.
        comparisons: ours against each baseline, where there are several.
        sections: a suite each.
    """

    anchor: str
    machine: str
    facts: list[tuple[str, str]]
    warning: str
    headline: str
    summaries: list[Table]
    comparisons: list[Table]
    sections: list[Section]


def write_html(results: Results, path: Path) -> None:
    """Writes the page whole or not at all.

    Args:
        path: of the page; its folder exists.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    chapters = [chapter(view, f"m{number}") for number, view in enumerate(views(results), 1)]
    colours = {variable(light): (light, dark) for light, dark in ON_DARK.items()}
    text = environment.get_template(TEMPLATE).render(
        chapters=chapters, method=method(), reproduce=REPRODUCE, colours=colours, slower=SLOWER, most_rows=MOST_ROWS
    )
    with whole_file(path) as temporary:
        temporary.write_text(text)


def chapter(view: View, anchor: str) -> Chapter:
    """Everything of one machine; `anchor` begins its elements' ids."""
    fastest = {suite: fastest_table(view, suite) for suite in SUITES}
    each = {suite: summary_table(view, suite) for suite in SUITES}
    summaries = [table for suite in SUITES if (table := fastest[suite] or each[suite])]
    lost = losses(view)
    return Chapter(
        anchor,
        view.machine,
        machine_facts(view)[1:],
        CPU_ONLY if view.newest["device"] == "cpu" else "",
        headline(view),
        [*summaries, *([lost] if lost else [])],
        [table for suite in SUITES if fastest[suite] and (table := each[suite])],
        list(sections(view, anchor)),
    )


def sections(view: View, anchor: str) -> Iterator[Section]:
    """Suites that were run."""
    with style():
        drawings = [
            (picture.suite, drawing(picture, f"{anchor}p{number}")) for number, picture in enumerate(pictures(view))
        ]
    for suite, title in SUITES.items():
        tables = list(suite_tables(view, suite))
        if tables:
            name = f"{anchor}-{re.sub('[^a-z]', '', suite)}"
            yield Section(name, title, [drawn for of, drawn in drawings if of == suite], tables)


def drawing(picture: Picture, prefix: str) -> Drawing:
    """Draws a picture; `prefix` begins its elements' ids."""
    figure = picture.draw()
    width = round(100 * figure.get_figwidth() / PAGE, 1)
    return Drawing(picture.title, picture.caption, Markup(svg(figure, prefix)), width)
