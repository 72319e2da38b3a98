"""What a run's own figure shows."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.figure import Figure

from urepa.evaluation.plots import losses_png


def test_a_validation_curve_says_that_it_is_of_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **o: (drawn.append(self), save(self, *a, **o))[1])
    rows: list[dict[str, Any]] = [{"step": step, "train/token": 1.0 / step, "val/token": 2.0} for step in (1, 2)]
    assert losses_png(rows).startswith(b"\x89PNG")
    (axis,) = drawn[0].axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["train/token", "val/token (EMA)"]
