"""A picture of a group of trajectories: when each sequence of one prompt committed each position."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mdlm_fast.plots import save_png
from mdlm_fast.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_LABELLED = 64  # positions; more columns have no room for a token's text
_LABEL_LENGTH = 8  # characters shown of a token
_NEVER = "#e6e6e6"
_SPECIAL = re.compile(r"<\|.*\|>|</?\w+>")


def trajectory_heatmap(
    trajectory: Trajectory,
    rows: Sequence[int],
    labels: Sequence[Sequence[str]] | None = None,
    *,
    names: Sequence[str] | None = None,
    per_step: Mapping[str, Sequence[float]] | None = None,
    title: str = "",
) -> Figure:
    """One row a sequence and one column a generated position, coloured by the step that committed it.

    Args:
        trajectory: of B sequences.
        rows: the R sequences to show, those of one prompt.
        labels: [R][L] texts of the sequences' tokens; shown where every column has room for one.
        names: [R], written beside each row, such as its reward; default: the row numbers.
        per_step: name -> one number for each step (NaN: none), such as the KL; a panel each, below the picture.
        title: above the picture.

    Raises:
        ValueError: no row, no generated position, or labels or names that do not fit.
    """
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = [str(row) for row in rows] if names is None else names
    commit_step, texts = _cells(trajectory, rows, labels)
    if len(names) != len(rows):
        raise ValueError(f"names has {len(names)} entries for {len(rows)} rows")
    height, width = commit_step.shape
    longest = max((len(text) for row in texts for text in row), default=0)
    cell_width = 0.14 + 0.075 * longest if longest else max(0.04, min(0.3, 12.0 / width))
    cell_height = 0.3 if longest or height <= 16 else max(0.09, 5.0 / height)
    panels = dict(per_step or {})
    picture = max(1.0, cell_height * height) + 0.7
    size = (
        max(7.5, cell_width * width + 2.0, 2.6 * len(panels)),
        picture + (0.4 if title else 0.0) + (2.0 if panels else 0.0),
    )
    figure = Figure(figsize=size, layout="constrained", dpi=120)
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    count = max(trajectory.steps, 1)
    norm = Normalize(0, max(count - 1, 1))
    colours = colormaps["viridis"].with_extremes(bad=_NEVER)

    ratios = [picture, 2.0] if panels else [picture]
    places = figure.add_gridspec(len(ratios), max(len(panels), 1), height_ratios=ratios)
    axes = figure.add_subplot(places[0, :])
    steps = commit_step.to(torch.float32)
    image = axes.imshow(steps.masked_fill(steps < 0, torch.nan).numpy(), cmap=colours, norm=norm, aspect="auto")
    axes.set_yticks(range(height), names, parse_math=False)
    never = " (grey: never committed)" if bool((steps < 0).any()) else ""
    axes.set_xlabel(f"generated position{never}", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(16, integer=True))
    axes.tick_params(length=0, labelsize=8)
    axes.tick_params(axis="y", labelsize=min(8.0, 60.0 * cell_height))
    axes.spines[:].set_visible(False)
    _draw_gaps(axes, height, width if cell_width > 0.1 else 1)
    for y, row in enumerate(texts):
        for x, text in enumerate(row):
            dark = steps[y, x] >= 0 and norm(float(steps[y, x])) < 0.6
            ink = "white" if dark else "black"
            axes.text(x, y, text, ha="center", va="center", fontsize=7, color=ink, parse_math=False)
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.03, aspect=max(8.0, 5.0 * picture))
    bar.set_label("step", fontsize=9)
    bar.ax.yaxis.set_major_locator(MaxNLocator(max(2, min(10, round(2.5 * picture))), integer=True))
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    for number, (name, values) in enumerate(panels.items()):
        panel = figure.add_subplot(places[1, number])
        panel.bar(range(len(values)), list(values), width=0.85, color=[colours(norm(s)) for s in range(len(values))])
        panel.set_title(name, fontsize=9, parse_math=False)
        panel.set_xlabel("step", fontsize=9)
        panel.set_xlim(-0.6, max(count, len(values)) - 0.4)
        panel.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        panel.ticklabel_format(axis="y", scilimits=(-2, 4))
        panel.yaxis.get_offset_text().set_fontsize(8)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.3)
        panel.set_axisbelow(True)
    return figure


def save_trajectory_heatmap(
    trajectory: Trajectory,
    rows: Sequence[int],
    labels: Sequence[Sequence[str]] | None,
    path: str | Path,
    **options: Any,
) -> Path:
    """Writes `trajectory_heatmap` (which see for the arguments) as a PNG, whole or not at all; its folder is made.

    Returns:
        The absolute path.

    Raises:
        ValueError: as `trajectory_heatmap`. OSError: the picture cannot be written.
    """
    figure = trajectory_heatmap(trajectory, rows, labels, **options)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # tokens in scripts that the font lacks
        return save_png(figure, path)


def _cells(
    trajectory: Trajectory, rows: Sequence[int], labels: Sequence[Sequence[str]] | None
) -> tuple[Tensor, list[list[str]]]:
    """(commit step [R, W], token texts [R][W] or [] where they are not shown) of the generated positions."""
    if not len(rows):
        raise ValueError("rows is empty; name at least one sequence to show")
    group = trajectory.select(list(rows)).to("cpu")
    columns = group.eligible.any(0).nonzero().flatten().tolist()
    if not columns:
        raise ValueError(f"rows {list(rows)} have no generated position")
    length = group.eligible.shape[1]
    if labels is not None and [len(row) for row in labels] != [length] * len(rows):
        raise ValueError(f"labels must be one text for each of {length} positions of {len(rows)} rows")
    texts: list[list[str]] = []
    if labels is not None and len(columns) <= _MAX_LABELLED:
        texts = [[_short(row[column]) for column in columns] for row in labels]
    return group.commit_step[:, columns], texts


def _short(text: str) -> str:
    if _SPECIAL.fullmatch(text):
        return "·"  # the tail of EOS tokens says nothing by being spelt out
    text = " ".join(text.split()) if text.strip() else repr(text)[1:-1].strip()
    return text if len(text) <= _LABEL_LENGTH else f"{text[: _LABEL_LENGTH - 1]}…"


def _draw_gaps(axes: Axes, height: int, width: int) -> None:
    """White lines between rows, and between columns if these are wide enough."""
    axes.set_yticks([y + 0.5 for y in range(height - 1)], minor=True)
    axes.set_xticks([x + 0.5 for x in range(width - 1)], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.0)
    axes.tick_params(which="minor", length=0)
