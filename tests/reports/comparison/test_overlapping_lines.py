"""Overlapping lines are found, drawn so that each is visible, and reported."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from urepa.reports.comparison.draw_panels import COLOURS, INK, draw
from urepa.reports.comparison.figures import panels
from urepa.reports.comparison.overlapping_lines import WIDTH, Place, overlap
from urepa.reports.comparison.page import page
from urepa.reports.comparison.results import Results
from urepa.runs.curves import Curve

Add, Summarise = Callable[..., None], Callable[..., Results]
X = np.arange(100)
FALL = np.exp(-X / 20)


def line(offset: float = 0.0, x: np.ndarray = X) -> Curve:
    return Curve(x, np.exp(-x / 20) + offset)


def test_lines_within_a_lines_width_overlap_and_others_do_not() -> None:
    near, far = 0.9 * WIDTH * np.ptp(FALL), 3 * WIDTH * np.ptp(FALL)
    found = overlap(["a", "b", "c", "d"], [line(), line(far), line(near), line(0.5)])
    assert found.places == (Place(0, 2), Place(), Place(1, 2), Place())
    assert found.note == "Equal within the width of a line: a; c."


def test_the_width_is_relative_to_the_whole_axis() -> None:
    apart = [line(), line(2 * WIDTH * np.ptp(FALL))]
    assert overlap(["a", "b"], apart).note == ""
    noise = Curve(X, np.where(X == 50, 5.0, FALL))
    assert overlap(["a", "b"], apart, [noise]).note == "Equal within the width of a line: a; b."


def test_lines_that_overlap_for_most_of_their_length() -> None:
    later = Curve(X, FALL + np.where(X > 70, 0.2, 0.0))
    assert overlap(["a", "b"], [line(), later]).note == "Over each other for most of their length: a; b."
    early = Curve(X, FALL + np.where(X > 30, 0.2, 0.0))
    assert overlap(["a", "b"], [line(), early]).places == (Place(), Place())


def test_lines_with_other_steps_are_compared_where_both_exist() -> None:
    every_third, gone = line(x=X[::3]), Curve(X, np.full(100, np.nan))
    later = Curve(X + 1000, FALL)
    found = overlap(["a", "b", "c", "d"], [line(), every_third, gone, later])
    assert found.places == (Place(0, 2), Place(1, 2), Place(), Place())


def test_dashes_fill_the_line_and_do_not_cover_each_other() -> None:
    """Of three lines at one place the first is solid; the dashes of each other line begin where another line's end."""
    styles = [Place(i, 3).style for i in range(3)]
    assert styles[0]["linestyle"] == "-"
    starts = []
    for style in styles[1:]:
        offset, (dash, gap) = style["linestyle"]
        assert gap == 2 * dash
        starts.append((-offset / dash) % 3)
    assert starts == [1, 2]
    assert [style["markevery"] for style in styles] == [(0, 3), (1, 3), (2, 3)]
    assert Place().style == {}


def coloured(png: bytes, colour: str) -> int:
    """Pixels of nearly this colour."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), float)
    return int((np.abs(pixels - 255 * np.array(to_rgb(colour))).max(-1) < 30).sum())


@pytest.mark.slow
def test_both_of_two_equal_curves_are_visible(add: Add, results: Summarise) -> None:
    """Validation curves of equal arms, as pixels: each arm's colour covers a fair share of their common line. The page
    lists equal curves."""
    way = {step: {"val/token": 0.5 + 300 / step} for step in range(30, 600, 30)}
    for ablation, changes in (("baseline", {}), ("arm", {"head.depth": 1})):
        add(ablation, changes, seeds=(0,), course=lambda seed: way, values=lambda seed: {"val/token": 1.0})
    study = results()
    (panel,) = [panel for panel in panels(study) if panel.name == "curve_val_token"]
    assert panel.note == "Equal within the width of a line: baseline; arm."
    drawn = draw(panel)
    assert coloured(drawn.png, COLOURS[0]) > 600
    assert coloured(drawn.png, INK) > 600
    html = page(study, [drawn], [])
    assert "<figcaption>Equal within the width of a line: baseline; arm.</figcaption>" in html


@pytest.mark.slow
def test_the_legend_shows_every_line_of_many_that_overlap(add: Add, results: Summarise) -> None:
    """Eight equal arms: every colour is below the axis, also those whose dashes are far apart."""
    add(seeds=(0,), points=60)
    for i in range(1, 8):
        add(f"arm{i}", {"head.depth": 10 + i}, seeds=(0,), points=60)
    (panel,) = [panel for panel in panels(results()) if panel.name == "curve_train_token"]
    png = draw(panel).png
    whole = Image.open(io.BytesIO(png))
    legend = io.BytesIO()
    whole.crop((0, int(panel.inches[1] * 150), whole.width, whole.height)).save(legend, format="PNG")
    assert min(coloured(legend.getvalue(), colour) for colour in COLOURS) > 20
