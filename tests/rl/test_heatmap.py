"""The picture of a group of trajectories: what it draws and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mdlm_fast.rl.heatmap import save_trajectory_heatmap, trajectory_heatmap
from mdlm_fast.trajectory import Trajectory


def trajectory(rows: int = 5, prompt: int = 3, generated: int = 7, seed: int = 0) -> Trajectory:
    generator = torch.Generator().manual_seed(seed)
    length = prompt + generated
    eligible = torch.zeros(rows, length, dtype=torch.bool)
    eligible[:, prompt:] = True
    steps = torch.randint(-1, 4, (rows, length), generator=generator, dtype=torch.int16)
    steps[~eligible] = -1
    zeros = torch.zeros(rows, length)
    ids = torch.arange(rows * length).view(rows, length)
    counts = torch.full((rows,), 4, dtype=torch.int32)
    return Trajectory(ids, steps, zeros, zeros, zeros, eligible, 99, (), None, counts)


def labels_of(record: Trajectory, rows: list[int]) -> list[list[str]]:
    return [[str(token) for token in row] for row in record.sequences[rows].tolist()]


def image(figure: Any) -> np.ma.MaskedArray[Any, Any]:
    return np.ma.masked_invalid(figure.axes[0].images[0].get_array())


@pytest.mark.parametrize("seed", range(3))
def test_cells_are_the_commit_steps_of_the_generated_positions(seed: int) -> None:
    record = trajectory(seed=seed)
    rows = [3, 1]
    figure = trajectory_heatmap(record, rows, labels_of(record, rows), names=["right", "wrong"])
    cells = image(figure)
    expected = record.commit_step[rows, 3:].numpy()
    assert cells.shape == (2, 7)
    assert np.array_equal(cells.mask, expected < 0) and np.array_equal(cells.data[~cells.mask], expected[expected >= 0])
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["right", "wrong"]
    texts = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    assert texts == {(y, x): str(record.sequences[row, 3 + x].item()) for y, row in enumerate(rows) for x in range(7)}
    assert ("never committed" in axes.get_xlabel()) == bool((expected < 0).any())


def test_panels_show_their_values_in_the_colours_of_the_steps(tmp_path: Path) -> None:
    values = {"KL": [0.1, 0.2, 0.0, 0.4], "clip fraction": [1.0, float("nan"), 0.5, 0.25]}
    figure = trajectory_heatmap(trajectory(), [0, 1], per_step=values)
    panels = figure.axes[2:]
    assert [panel.get_title() for panel in panels] == list(values)
    cmap, norm = figure.axes[0].images[0].cmap, figure.axes[0].images[0].norm
    for panel, expected in zip(panels, values.values(), strict=True):
        np.testing.assert_array_equal([bar.get_height() for bar in panel.patches], expected)
        assert [bar.get_facecolor() for bar in panel.patches] == [cmap(norm(step)) for step in range(4)]


def test_labels_are_left_out_where_they_do_not_fit() -> None:
    for generated, drawn in ((64, 64 * 2), (65, 0)):
        record = trajectory(2, generated=generated)
        assert len(trajectory_heatmap(record, [0, 1], labels_of(record, [0, 1])).axes[0].texts) == drawn
    assert not trajectory_heatmap(trajectory(), [0]).axes[0].texts


def test_odd_tokens_and_titles_are_drawn_as_they_are(tmp_path: Path) -> None:
    record = trajectory(1, prompt=0, generated=8)
    words = [["$$", r"$\frac$", "\n", " two\nlines ", "averylongtoken", "\u4e2d", "<|endoftext|>", "<eos>"]]
    figure = trajectory_heatmap(record, [0], words, names=["$_$"], title=r"cost $\oops$")
    drawn = [text.get_text() for text in figure.axes[0].texts]
    assert drawn == ["$$", r"$\frac$", r"\n", "two lin…", "averylo…", "\u4e2d", "·", "·"]
    path = save_trajectory_heatmap(record, [0], words, tmp_path / "new" / "heat.png", names=["$_$"], title=r"$\oops$")
    assert path.read_bytes().startswith(b"\x89PNG") and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("rows", "changed", "message"),
    [
        ([], {}, "rows is empty"),
        ([0, 1], {"names": ["one"]}, "names has 1 entries for 2 rows"),
        ([0], {"labels": [["x"] * 9]}, "labels must be one text for each of 10 positions of 1 rows"),
        ([0, 1], {"labels": [["x"] * 10]}, "of 2 rows"),
    ],
)
def test_what_is_refused(rows: list[int], changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trajectory_heatmap(trajectory(), rows, **changed)


def test_a_trajectory_without_generated_positions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rows \[0\] have no generated position"):
        trajectory_heatmap(trajectory(generated=0), [0])
