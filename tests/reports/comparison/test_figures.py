"""Which figures exist, and their contents."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import without_alignment
from matplotlib.figure import Figure

from urepa.reports.comparison.draw_panels import Panel, draw, shorten
from urepa.reports.comparison.figures import SMOOTHED_OVER, panels, smooth
from urepa.reports.comparison.results import Results
from urepa.runs.curves import STRETCHES, Curve

Add, Summarise = Callable[..., None], Callable[..., Results]
NAN = float("nan")


def named(results: Results) -> dict[str, Panel]:
    return {panel.name: panel for panel in panels(results)}


def arms_of(panel: Panel) -> list[str]:
    """The arms whose lines a panel of curves or bins draws."""
    lines: list[Any] = panel.draw.keywords["lines"]  # type: ignore[attr-defined]
    return [line[1] for line in lines]


@pytest.mark.slow
def test_an_arm_without_a_finite_value_has_no_line(add: Add, results: Summarise) -> None:
    """Diverged from the first point on in every seed; and one seed of another arm."""
    add(course=lambda seed: {300: {"val/x0_error": 0.4}})
    gone = {"val/x0_error": NAN}
    add("gone", {"head.depth": 1}, values=lambda seed: gone, course=lambda seed: {300: gone})
    value = {0: NAN}
    add(
        "partly",
        {"head.depth": 3},
        values=lambda seed: {"val/x0_error": value.get(seed, 0.3)},
        course=lambda seed: {300: {"val/x0_error": value.get(seed, 0.5)}},
    )
    panel = named(results())["curve_val_x0_error"]
    assert arms_of(panel) == ["baseline", "partly"]
    assert draw(panel).png.startswith(b"\x89PNG")


def test_curves_of_averaged_weights_are_labelled(add: Add, results: Summarise) -> None:
    add(course=lambda seed: {300: {"val/token": 0.6, "eval/knn/tap": 0.2}}, values=lambda seed: {"final/knn/tap": 0.3})
    titles = {name: panel.title for name, panel in named(results()).items()}
    assert titles["curve_val_token"] == "validation (EMA): token loss"
    assert titles["curve_final_knn_tap"] == "k-NN: tap (EMA)"
    assert titles["curve_train_token"] == "training token loss"


def test_figures_of_alignment_need_no_aligned_baseline(add: Add, results: Summarise, tmp_path: Path) -> None:
    """Training curves, gradients, tokens by bin and validation curves of the arms that are comparable with each
    other."""
    without_alignment(add, tmp_path)
    found = named(results(baseline="none"))
    for name in ("curve_train_token", "timestep_token", "curve_val_token"):
        assert arms_of(found[name]) == ["a", "b"]
        assert [line[0] for line in found[name].draw.keywords["lines"]] == [1, 2], "the baseline's ink is nobody else's"
    assert arms_of(found["curve_tap_mid_grad_cosine"]) == ["a", "b", "c"]


@pytest.mark.slow
def test_a_heat_map_shows_why_a_cell_is_empty(add: Add, results: Summarise) -> None:
    """A hole, a diverged cell, and cells that are not comparable."""
    for depth in (1, 2, 3):
        for limit in (4000, 8000, None):
            if (depth, limit) != (3, 4000):
                value = NAN if (depth, limit) == (1, 4000) else 0.3 + depth / 100
                add(
                    changes={"head.depth": depth, "data.limit": limit or 2000},
                    name=f"{depth},{limit}",
                    values=lambda seed, v=value: {"val/token": v},
                )
    panel = named(results(baseline="head.depth=2,data.limit=8000"))["map_val_token_data_limit_head_depth"]
    axis = Figure().subplots()
    panel.draw(axis)
    texts = [text.get_text() for text in axis.texts]
    assert texts.count("–") == 1
    assert texts.count("not finite") == 1
    assert len(texts) == 9


def test_long_labels_keep_where_arms_of_a_sweep_differ() -> None:
    labels = [f"depth={d}, loss=URepaLoss, lambda_max={lam}" for d in (1, 2) for lam in (0.25, 0.5)]
    short = [shorten(label) for label in labels]
    assert len(set(short)) == len(labels)
    assert {len(label) for label in short} == {34}
    assert short[0] == "depth=1, lo…aLoss, lambda_max=0.25"
    assert shorten("lambda_0\n") == "lambda_0"


def smoothed_plainly(curves: list[Curve], share: float) -> tuple[Any, Any]:
    """Each step's mean over seeds, then the mean of the points within half a window, point by point."""
    by_step: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True):
            if np.isfinite(value):
                by_step.setdefault(step, []).append(value)
    steps = np.array(sorted(by_step))
    means = np.array([np.mean(by_step[step]) for step in steps])
    half = int(len(steps) * share / 2)
    return steps, np.array([means[max(0, i - half) : i + half + 1].mean() for i in range(len(steps))])


@pytest.mark.parametrize("n", [1, 300, 20_000])
def test_smoothing_is_a_running_mean(n: int) -> None:
    """Of few points exactly; of many at the centres of their stretches, up to a fraction of the window."""
    curves = [Curve(np.arange(begin, n), np.sin(np.arange(begin, n) / n * 6)) for begin in (0, n // 4, n // 2)]
    curves[0].values[n // 3] = np.nan
    curves.append(Curve(np.arange(2), np.array([np.inf, np.nan])))
    steps, means = smoothed_plainly(curves, SMOOTHED_OVER)
    found = smooth(curves)
    assert len(found.steps) == min(n, STRETCHES)
    if n <= STRETCHES:
        np.testing.assert_array_equal(found.steps, steps)
        np.testing.assert_allclose(found.values, means, rtol=1e-12)
    else:
        np.testing.assert_allclose(found.values, means[np.searchsorted(steps, found.steps)], atol=5e-3)


@pytest.mark.slow
def test_panels_of_long_runs_are_small(add: Add, results: Summarise) -> None:
    """They are sent to other processes."""
    add(seeds=(0,), changes={"trainer.max_steps": 6000}, points=6000)
    panel = named(results())["curve_train_total"]
    assert len(pickle.dumps(panel.draw)) < 5 * 16 * STRETCHES
    assert draw(panel).png.startswith(b"\x89PNG")
