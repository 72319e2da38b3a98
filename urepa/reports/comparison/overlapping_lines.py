"""Lines that hide each other in a figure: finding them, drawing each so that it is visible, and a sentence on them.

Among overlapping lines the first is solid and the others are dashed over it. The dashes of each line begin where those
of the previous line end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Line = tuple[NDArray[Any], NDArray[np.float64]]  # x [N], ascending, and y [N]; a Curve has this form

WIDTH = 0.008  # of a line, as a share of the axis height: 1.4 of about 180 points
MOSTLY = 0.5  # two lines overlap if they are closer than WIDTH over a larger share of their points
DASH = 4.0  # length of a dash, in line widths


@dataclass(frozen=True)
class Place:
    """A line's index among `of` overlapping lines, from 0; a line without overlap has 0 of 1."""

    place: int = 0
    of: int = 1

    @property
    def style(self) -> dict[str, Any]:
        """matplotlib's options for the line besides colour and marker; empty if it is drawn as usual."""
        if self.of == 1:
            return {}
        if self.place == 0:
            return {"linestyle": "-", "markevery": self.every}
        period = DASH * self.of
        return {"linestyle": (period - DASH * self.place, (DASH, period - DASH)), "markevery": self.every}

    @property
    def every(self) -> tuple[int, int]:
        """The points with a marker or an error bar, as (first, interval). Overlapping lines have theirs at different
        points."""
        return self.place, self.of


@dataclass(frozen=True)
class Overlap:
    """The places of lines, in their order, and a sentence on those that overlap ("" if none do)."""

    places: tuple[Place, ...]
    note: str


def overlap(labels: Sequence[str], lines: Sequence[Line], beside: Iterable[Line] = ()) -> Overlap:
    """Finds the overlaps of lines on one axis. The axis height covers the lines and what is drawn `beside` them."""
    within = WIDTH * _height([*lines, *beside])
    shares = {(i, j): _close_share(lines[i], lines[j], within) for i in range(len(lines)) for j in range(i)}
    places = [Place()] * len(lines)
    said = []
    for group in _connected_components(len(lines), lambda i, j: shares[max(i, j), min(i, j)] > MOSTLY):
        if len(group) == 1:
            continue
        for place, i in enumerate(group):
            places[i] = Place(place, len(group))
        throughout = all(shares[max(i, j), min(i, j)] == 1 for i in group for j in group if i != j)
        how = "Equal within the width of a line" if throughout else "Over each other for most of their length"
        said.append(f"{how}: {'; '.join(labels[i] for i in group)}.")
    return Overlap(tuple(places), " ".join(said))


def _height(lines: Iterable[Line]) -> float:
    there = [values[np.isfinite(values)] for _, values in lines]
    filled = [values for values in there if len(values)]
    return float(max(map(np.max, filled)) - min(map(np.min, filled))) if filled else 0.0


def _close_share(one: Line, other: Line, within: float) -> float:
    """The share of points at which the lines are at most `within` apart, over their common range; 0 if they have
    none."""
    (a, a_y), (b, b_y) = ((x[np.isfinite(y)], y[np.isfinite(y)]) for x, y in (one, other))
    if not len(a) or not len(b):
        return 0.0
    x = np.union1d(a, b)
    x = x[(x >= max(a[0], b[0])) & (x <= min(a[-1], b[-1]))]
    if not len(x):
        return 0.0
    return float((np.abs(np.interp(x, a, a_y) - np.interp(x, b, b_y)) <= within).mean())


def _connected_components(n: int, linked: Callable[[int, int], bool]) -> list[list[int]]:
    """The connected components of a graph of n nodes."""
    groups: list[list[int]] = []
    for i in range(n):
        near = [group for group in groups if any(linked(i, j) for j in group)]
        groups = [group for group in groups if group not in near] + [sorted([i, *(j for g in near for j in g)])]
    return sorted(groups)
