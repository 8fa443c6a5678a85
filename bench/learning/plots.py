"""Pictures of the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.learning.analysis import Cell, Result
from bench.learning.runs import METHODS, ROLLOUTS

#: Okabe and Ito's colours, told apart by the colour-blind; each method has its own line style too.
STYLES: dict[str, tuple[str, str]] = {
    "cj-grpo": ("#0072B2", "-"),
    "mdpo": ("#009E73", "-"),
    "one-step": ("#E69F00", "--"),
    "diffu-grpo": ("#D55E00", "-."),
}
BEFORE_COLOUR = "#555555"
AXES = {"step": "optimizer step", "cpu_seconds": "processor seconds of training"}
#: (part of the result, quantity, factor, label)
QUANTITIES = (
    ("evaluation", "test", 100.0, "held-out accuracy (%)"),
    ("training", "reward", 1.0, "reward of rollouts"),
    ("training", "kl", 1.0, "KL to the start (nats a token)"),
    ("training", "entropy", 1.0, "entropy (nats a token)"),
)
RC: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "savefig.dpi": 200,
}


@rc_context(RC)
def training_curves(cells: Sequence[Cell]) -> Figure:
    """Held-out accuracy, reward, KL and entropy (columns) over optimizer steps and over seconds (rows); a thin line a
    seed, a thick one for their mean."""
    figure, panels = _figure(2, len(QUANTITIES), 9.6, 4.4)
    for row, axis in zip(panels, AXES, strict=True):
        for axes, (part, quantity, factor, label) in zip(row, QUANTITIES, strict=True):
            for cell in cells:
                _draw(axes, cell, part, quantity, axis, factor)
            axes.set(xlabel=AXES[axis], ylabel=label, xlim=(0, None))
            if quantity == "kl":
                axes.set_ylim(0, None)
            axes.grid(alpha=0.25, linewidth=0.5)
    _legend(figure, panels[0][0], len(cells))
    return figure


def _draw(axes: Axes, cell: Cell, part: str, quantity: str, axis: str, factor: float) -> None:
    colour, style = STYLES[cell.method]
    for run in cell.runs:
        axes.plot(run[part][axis], factor * np.array(run[part][quantity]), color=colour, linewidth=0.6, alpha=0.45)
    x, y = cell.mean(part, axis), factor * cell.mean(part, quantity)
    axes.plot(x, y, style, color=colour, linewidth=1.8, label=METHODS[cell.method].label)


@rc_context(RC)
def accuracy_by_passes(start: Result, cells: Sequence[Cell]) -> Figure:
    """Held-out accuracy over decoding steps, before and after training: a panel a decoder that has several. The
    schedule of training, where it has one number of steps, is a diamond."""
    decoders = [label for label, by_steps in start["passes"].items() if len(by_steps) > 1]
    figure, [panels] = _figure(1, len(decoders), 3.4 * len(decoders) + 0.4, 2.9)
    for axes, decoder in zip(panels, decoders, strict=True):
        steps = sorted(int(count) for count in start["passes"][decoder])
        axes.plot(
            steps,
            [100 * start["passes"][decoder][str(count)] for count in steps],
            "o:",
            color=BEFORE_COLOUR,
            markersize=3.5,
            label="before",
        )
        for cell in cells:
            colour, style = STYLES[cell.method]
            every = np.stack([cell.with_decoder(decoder, str(count)) for count in steps], 1)
            axes.fill_between(steps, every.min(0), every.max(0), color=colour, alpha=0.18, linewidth=0)
            label = METHODS[cell.method].label
            axes.plot(steps, every.mean(0), style, color=colour, marker="o", markersize=3.5, linewidth=1.8, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(steps, [str(count) for count in steps])
        axes.minorticks_off()
        axes.set(xlabel="decoding steps of 24 tokens", ylabel="held-out accuracy (%)", title=decoder)
        axes.grid(alpha=0.25, linewidth=0.5)
    _mark_trained(panels[0], start, cells)
    _legend(figure, panels[0], 2 * len(decoders))
    return figure


def _mark_trained(axes: Axes, start: Result, cells: Sequence[Cell]) -> None:
    decoder, steps = ROLLOUTS[start["settings"]["rollouts"]].trained
    if len(start["passes"][decoder]) > 1:
        return
    marks = [(100 * start["passes"][decoder][steps], BEFORE_COLOUR)]
    marks += [(float(cell.with_decoder(decoder, steps).mean()), STYLES[cell.method][0]) for cell in cells]
    for accuracy, colour in marks:
        axes.plot(int(steps), accuracy, "D", markersize=5, markerfacecolor="white", markeredgecolor=colour, zorder=3)


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=200)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
