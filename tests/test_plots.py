"""The trajectory picture: what it draws, and that it is written whole or not at all."""

from pathlib import Path

import pytest
import torch

from mdlm_fast.plots import save_png, trajectory_figure


def figure():
    generator = torch.Generator().manual_seed(3)
    steps = torch.randperm(9, generator=generator).to(torch.int16)
    steps[4] = -1
    return trajectory_figure(steps, torch.rand(9, generator=generator), [str(i) for i in range(9)], title="t"), steps


def test_every_committed_position_is_drawn_and_masked_ones_are_not() -> None:
    drawn, steps = figure()
    grid, bars = drawn.axes
    assert [text.get_text() for text in grid.texts] == [str(i) for i in range(9) if steps[i] >= 0]
    assert [(text.get_position()[0], text.get_position()[1]) for text in grid.texts] == [
        (i, int(steps[i])) for i in range(9) if steps[i] >= 0
    ]
    assert len(bars.patches) == 8


def test_picture_is_a_png_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = save_png(figure()[0], tmp_path / "picture.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


def test_failed_drawing_keeps_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    drawn, _ = figure()

    def fail(target: str, **_: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(drawn, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save_png(drawn, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["picture.png"]
    assert path.read_bytes() == b"old"


def test_bad_paths_and_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        save_png(figure()[0], tmp_path / "absent" / "picture.png")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        save_png(figure()[0], tmp_path)
    with pytest.raises(ValueError, match=r"commit_step \[3\]"):
        trajectory_figure(torch.zeros(3), torch.zeros(3), ["a"], title="t")
