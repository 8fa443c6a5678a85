"""The report's pictures, on results that no machine measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mdlm_fast.bench.report import derived
from mdlm_fast.bench.report.plots import KINDS, SOFTWARE, cost, draw_all, save
from mdlm_fast.bench.report.plots.style import ON_DARK, SYSTEMS, style
from mdlm_fast.bench.report.views import views

from . import synthetic


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__.rpartition(".")[2])
def test_pictures_are_drawn_without_text_outside(kind: object) -> None:
    (view,) = views(synthetic.results(full=kind.__name__.endswith("heat")))  # type: ignore[attr-defined]
    drawn = list(kind.pictures(view))  # type: ignore[attr-defined]
    assert drawn
    with style():
        figure = drawn[-1].draw()
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
    assert box.x0 > -0.02 and box.y0 > -0.02
    assert box.x1 < figure.get_figwidth() + 0.02 and box.y1 < figure.get_figheight() + 0.02
    assert synthetic.CPU in [text.get_text() for text in figure.texts]


def test_every_system_colour_has_a_dark_counterpart() -> None:
    assert {colour for colour, _ in SYSTEMS.values()} <= set(ON_DARK)


def test_exponents_beside_lines() -> None:
    assert cost.exponent(None) == ""
    assert cost.exponent(derived.Fit(1.0, None, 1.0, 1.0, 2.0)) == "b = 1.00"
    assert cost.exponent(derived.Fit(0.976, 0.0123, 1.0, 1.0, 2.0)) == "b = 0.98 ± 0.01"
    assert cost.exponent(derived.Fit(0.976, 0.001, 1.0, 1.0, 2.0)) == "b = 0.98 ± <0.01"
    assert cost.spaced([1_000, 32_000, 126_464, 151_936, 262_144]) == [1_000, 32_000, 262_144]


def test_lines_of_training_along_each_axis() -> None:
    (view,) = views(synthetic.results())
    (picture,) = [one for one in cost.pictures(view) if one.suite == "rl"]
    with style():
        panels = [axes for axes in picture.draw().axes if axes.get_visible()]
    assert [axes.get_xlabel() for axes in panels] == ["steps S", "batch B", "generated G", "updates µ"]


def test_committing_and_remasking_share_a_picture() -> None:
    made = synthetic.results()
    for batch, length in ((8, 64), (8, 1024)):
        for op, variant in (("select_commit_", "quota"), ("remask_", "RCR")):
            found = synthetic.record(ours=synthetic.exact(1e-6 * length), MDPO=synthetic.exact(2e-6 * length, 2.0))
            found.case = {"op": op, "variant": variant, "batch": batch, "length": length}
            made.put(found, next(iter(made.runs)))
    (view,) = views(made)
    (picture,) = [one for one in cost.pictures(view) if "remask" in one.name]
    with style():
        panels = picture.draw().axes
    assert [axes.get_title("left").splitlines()[0] for axes in panels] == ["select_commit_, quota", "remask_, RCR"]


def test_pictures_of_an_earlier_report_are_removed_and_nothing_else(tmp_path: Path) -> None:
    made = synthetic.results()
    made.records = [record for record in made.records if record.suite == "rl"][:1]
    said = PngInfo()
    said.add_text("Software", SOFTWARE)
    Image.new("RGB", (1, 1)).save(tmp_path / "old-machine-rl-ratios.png", pnginfo=said)
    Image.new("RGB", (1, 1)).save(tmp_path / "my-rl-ratios.png")
    (tmp_path / "no-picture.png").write_text("text")
    written = draw_all(made, tmp_path)
    assert written and {path.name for path in tmp_path.iterdir()} == {
        "my-rl-ratios.png",
        "no-picture.png",
        *(path.name for path in written),
    }
    assert draw_all(made, tmp_path) == written


def test_few_colours_keep_those_that_are_drawn(tmp_path: Path) -> None:
    figure = Figure(figsize=(2, 1), dpi=200)
    axes = figure.subplots()
    for place, (colour, _) in enumerate(SYSTEMS.values()):
        axes.bar(place, 1, color=colour)
    save(figure, tmp_path / "bars.png")
    with Image.open(tmp_path / "bars.png") as found:
        pixels = np.asarray(found.convert("RGB")).reshape(-1, 3).astype(int)
    for colour, _ in SYSTEMS.values():
        wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
        assert np.abs(pixels - wanted).max(-1).min() <= 3, colour
