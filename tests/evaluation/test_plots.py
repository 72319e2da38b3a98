"""The contents of a run's own figure."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from urepa.evaluation.plots import losses_png
from urepa.runs.curves import Curve


def test_a_validation_curve_says_that_it_is_of_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **o: (drawn.append(self), save(self, *a, **o))[1])
    steps = np.array([1, 2])
    curves = {"train/token": Curve(steps, 1 / steps), "val/token": Curve(steps, np.full(2, 2.0))}
    assert losses_png(curves).startswith(b"\x89PNG")
    (axis,) = drawn[0].axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["train/token", "val/token (EMA)"]
