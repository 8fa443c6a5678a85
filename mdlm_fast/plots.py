"""Pictures of a trajectory, written whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from mdlm_fast.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def trajectory_figure(
    commit_step: Tensor, confidence: Tensor, labels: Sequence[str], *, title: str, confidence_label: str = "probability"
) -> Figure:
    """When each position was committed and how confident the decoder was.

    The upper panel has a row a step and a column a position: a filled cell is a committed token, in full colour on
    the step that commits it and light afterwards. The lower panel shows the confidence at that step.

    Args:
        commit_step: int [L], step that committed each position, -1 = never (drawn as still masked).
        confidence: float [L], at the commit; in [0, 1] for probabilities.
        labels: L token texts, "" where none should be shown.
        title: above the figure.
        confidence_label: label of the lower axis.

    Raises:
        ValueError: the three do not have one length, or that is zero.
    """
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    length = len(labels)
    if not length or commit_step.shape != (length,) or confidence.shape != (length,):
        raise ValueError(
            f"commit_step {list(commit_step.shape)} and confidence {list(confidence.shape)} must be [L] for L = "
            f"{length} labels, L at least 1"
        )
    steps, values = commit_step.tolist(), confidence.tolist()
    count = max(steps) + 1
    colours = colormaps["viridis"]
    norm = Normalize(0, max(count - 1, 1))
    figure = Figure(figsize=(max(6.4, 0.36 * length + 1.6), 2.6 + 0.24 * count), layout="constrained", dpi=120)
    figure.suptitle(title, fontsize=11)
    grid, bars = figure.subplots(2, 1, sharex=True, height_ratios=[max(count, 4), 6])

    for position, (step, label) in enumerate(zip(steps, labels, strict=True)):
        if step < 0:
            continue
        colour = colours(norm(step))
        grid.add_patch(Rectangle((position - 0.5, step - 0.5), 1, count - step, color=colour, alpha=0.18, linewidth=0))
        grid.add_patch(Rectangle((position - 0.46, step - 0.44), 0.92, 0.88, color=colour, linewidth=0))
        dark = norm(step) < 0.6
        ink = "white" if dark else "black"
        grid.text(position, step, label, ha="center", va="center", fontsize=7, color=ink, parse_math=False)
        bars.bar(position, values[position], width=0.92, color=colour)
    grid.set(ylim=(count - 0.5, -0.5), ylabel="step", xlim=(-0.5, length - 0.5))
    grid.set_yticks(range(0, count, max(1, count // 12)))
    grid.tick_params(axis="x", length=0)
    bars.set(ylim=(0, 1.05) if max(values) <= 1 and min(values) >= 0 else None, ylabel=confidence_label)
    bars.set_xlabel("position")
    bars.set_xticks(range(0, length, max(1, length // 24)))
    for axes in (grid, bars):
        axes.spines[["top", "right"]].set_visible(False)
    bars.grid(axis="y", alpha=0.3)
    bars.set_axisbelow(True)
    return figure


def png_path(path: Path) -> Path:
    """The absolute path of a picture to be written, checked.

    Raises:
        FileNotFoundError: the folder does not exist.
        IsADirectoryError: `path` is a folder.
    """
    path = path.expanduser().absolute()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    return path


def save_png(figure: Figure, path: Path) -> Path:
    """Write a figure under a temporary name in the same folder, then rename it: no half-written picture is ever seen.

    Returns:
        The absolute path.

    Raises:
        FileNotFoundError, IsADirectoryError: as `png_path`.
    """
    path = png_path(path)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
