"""Logged metrics over the steps, as arrays: eight bytes per value; steps that metrics share are stored once.

Shapes: N points of a metric, R rows.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from urepa.runs.metrics import NOT_METRICS, number

STRETCHES = 1000  # stretches of a drawn line: more than a figure has pixels in width


class Curve(NamedTuple):
    """A logged metric: steps [N], ascending, and values [N]."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass
class _Column:
    """A metric while it is read: its values, and the rows that contain it as begin, end, begin, end, ..."""

    values: array[float]
    spans: array[int]

    def add_span(self, begin: int, end: int) -> None:
        if self.spans and self.spans[-1] == begin:
            self.spans[-1] = end
        else:
            self.spans.extend((begin, end))


def read_curves(rows: Iterable[dict[str, Any]], is_wanted: Callable[[str], bool]) -> tuple[dict[str, Curve], int]:
    """The curves of the wanted keys, in alphabetical order, and the time of the first row in ms (0 without rows). Rows
    must ascend by step. A value that a later row withdraws (null) is NaN."""
    steps, columns, started = array("q"), dict[str, _Column](), 0
    keys: tuple[str, ...] = ()  # keys of the rows since `begin`
    adders: list[tuple[str, Callable[[float], None]]] = []
    begin = n = 0
    for n, row in enumerate(rows, 1):
        if n == 1:
            started = row["time"]
        if tuple(row) != keys:
            for key, _ in adders:
                columns[key].add_span(begin, n - 1)
            keys, begin = tuple(row), n - 1
            adders = [
                (key, columns.setdefault(key, _Column(array("d"), array("q"))).values.append)
                for key in keys
                if key not in NOT_METRICS and is_wanted(key)
            ]
        steps.append(row["step"])
        for key, add in adders:
            add(number(row[key]))
    for key, _ in adders:
        columns[key].add_span(begin, n)
    return _as_curves(np.array(steps, np.int64), columns), started


def _as_curves(steps_R: NDArray[np.int64], columns: dict[str, _Column]) -> dict[str, Curve]:
    shared: dict[bytes, NDArray[np.int64]] = {}
    curves = {}
    for key in sorted(columns):
        spans = columns[key].spans
        where = spans.tobytes()
        if where not in shared:
            shared[where] = steps_R if list(spans) == [0, len(steps_R)] else steps_R[_rows(spans)]
        curves[key] = Curve(shared[where], np.frombuffer(columns[key].values, np.float64))
    return curves


def _rows(spans: array[int]) -> NDArray[np.int64]:
    """The indices of the rows in the spans."""
    begins, ends = np.array(spans, np.int64).reshape(-1, 2).T
    lengths = ends - begins
    first = np.cumsum(lengths) - lengths  # offset of each span in the returned rows
    return np.repeat(begins - first, lengths) + np.arange(int(lengths.sum()))


def curves_of(points: dict[str, tuple[array[int], array[float]]]) -> dict[str, Curve]:
    """Curves from steps and values in any order, by key in alphabetical order."""
    curves = {}
    for key in sorted(points):
        steps, values = np.array(points[key][0], np.int64), np.array(points[key][1], np.float64)
        order = np.argsort(steps, kind="stable")
        curves[key] = Curve(steps[order], values[order])
    return curves


def thin_curve(curve: Curve) -> Curve:
    """Reduces a curve to the lowest and the highest finite value of each of `STRETCHES` stretches, so that it looks the
    same when drawn. A short curve is returned unchanged."""
    n = len(curve.steps)
    if n <= 2 * STRETCHES:
        return curve
    edges = np.linspace(0, n, STRETCHES + 1).astype(int)
    begins, lasts = edges[:-1], edges[1:] - 1
    values = np.where(np.isfinite(curve.values), curve.values, np.nan)
    steps = np.stack([curve.steps[begins], curve.steps[lasts]], axis=1)
    ends = np.stack([np.fmin.reduceat(values, begins), np.fmax.reduceat(values, begins)], axis=1)
    return Curve(steps.ravel(), ends.ravel())
