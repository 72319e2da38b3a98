"""Curves that are read row by row: the same points as in a list, in little more memory than the values need."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from urepa.runs.curves import STRETCHES, Curve, read_curves, thin_curve
from urepa.runs.metrics import Rows, number

KEYS = [f"train/{i}" for i in range(10)]


def plainly(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for key in row.keys() - {"step", "time"}:
            points.setdefault(key, []).append((row["step"], number(row[key])))
    return points


@pytest.mark.parametrize("seed", range(5))
def test_the_points_equal_those_of_a_plain_reader(seed: int) -> None:
    draw = random.Random(seed)
    rows = [
        {"step": 5 * i}
        | {k: draw.choice([draw.random(), 1, "nan", None]) for k in "abcd" if draw.random() < draw.choice([0.1, 0.9])}
        | {"time": 100 + i}
        for i in range(200)
    ]
    expected = plainly(rows)
    curves, started = read_curves(rows, lambda key: key != "d")
    assert (list(curves), started) == (sorted(expected.keys() - {"d"}), 100)
    for key, curve in curves.items():
        steps, values = zip(*expected[key], strict=True)
        np.testing.assert_array_equal(curve.steps, steps)
        np.testing.assert_array_equal(curve.values, values)
    assert read_curves([], lambda key: True) == ({}, 0)


def test_steps_are_kept_once() -> None:
    rows = [
        {"step": i, "a": 1.0, "b": 2.0, **({"c": 3.0, "d": 4.0} if i % 7 == 0 else {}), "time": i} for i in range(50)
    ]
    curves, _ = read_curves(rows, lambda key: True)
    assert curves["a"].steps is curves["b"].steps
    assert curves["c"].steps is curves["d"].steps


@pytest.mark.slow
def test_memory_of_many_rows(tmp_path: Path) -> None:
    """30,000 rows of ten metrics are 2.6 MB of numbers; lists of pairs take 50 MB, dicts 40 MB more."""
    file, n = tmp_path / "metrics.jsonl", 30_000
    with open(file, "w") as lines:
        for step in range(1, n + 1):
            lines.write(json.dumps({"step": step} | dict.fromkeys(KEYS, step / 7) | {"time": step}) + "\n")
    tracemalloc.start()
    try:
        curves, _ = read_curves(Rows(file), lambda key: True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(curves["train/9"].values) == n
    assert peak < 1.5 * 8 * n * (len(KEYS) + 1)


@pytest.mark.parametrize("n", [1, 2 * STRETCHES, 2 * STRETCHES + 1, 12_345])
def test_a_thinned_curve_looks_the_same(n: int) -> None:
    """Few points, and the same smallest and largest finite value in every stretch of steps."""
    values = np.random.default_rng(0).standard_normal(n)
    values[n // 3] = 1e30
    values[n // 2 : n // 2 + 20 * (n // STRETCHES)] = np.nan
    values[-1] = np.inf
    curve = Curve(np.arange(n) * 3, values)
    thin = thin_curve(curve)
    if n <= 2 * STRETCHES:
        assert thin is curve
        return
    assert len(thin.steps) == 2 * STRETCHES
    assert (np.diff(thin.steps) >= 0).all()
    assert (thin.steps[0], thin.steps[-1]) == (0, 3 * (n - 1))
    for low, high, begin, end in zip(
        thin.values[::2], thin.values[1::2], thin.steps[::2] // 3, thin.steps[1::2] // 3, strict=True
    ):
        part = values[begin : end + 1]
        finite = part[np.isfinite(part)]
        expected = (finite.min(), finite.max()) if len(finite) else (np.nan, np.nan)
        np.testing.assert_array_equal((low, high), expected)
