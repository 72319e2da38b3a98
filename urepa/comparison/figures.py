"""The figures of a study, a panel each: differences, error by timestep, sweeps, training curves, gradients.

Shapes: T timestep bins, S seeds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from math import isfinite
from typing import Any

import numpy as np

from urepa.comparison.arms import Arm, Sweep, sweeps
from urepa.comparison.comparable import Metric, bins_of, obstacles, unpaired_by
from urepa.comparison.drawing import COLOURS, INK, MUTED, Panel, marker_of, shortened, style_of
from urepa.comparison.results import Results, Row, last_cell
from urepa.comparison.runs import Curve
from urepa.comparison.statistics import paired
from urepa.comparison.words import number

ARMS_A_PANEL = 1 + 2 * len(COLOURS)  # the baseline, and as many as colours and dashes tell apart
ROWS_A_PANEL = 40
SMOOTHED_OVER = 0.05  # of the run
TERMS = ("total", "diffusion", "token", "manifold")

DIFFERENCES, BY_TIMESTEP, SWEEPS, TRAINING, GRADIENTS = "differences", "timesteps", "sweeps", "curves", "gradients"
CAPTIONS = {
    DIFFERENCES: "Mean difference with its 95 % interval. Filled: it excludes 0 after Holm over the arms; half-filled: "
    "before Holm only; open: it does not. Crosses have no interval.",
    BY_TIMESTEP: "The last logged validation by timestep bin, mean and standard deviation over seeds. The error of the "
    "implied x0 serves all objectives; beside it the difference to the baseline in per cent, with 95 % intervals "
    "where seeds are paired.",
    SWEEPS: "Mean over seeds, with the standard deviation as error bars. Cells that do not compare with the baseline "
    "are empty.",
    TRAINING: "Thin lines: every seed as logged. Thick lines: the mean over seeds, averaged over 5 % of the run.",
    GRADIENTS: "Cosine between the gradients of the diffusion loss and of the alignment loss (before λ): below 0 they "
    "pull apart. Thin lines: every seed as logged; thick lines: the smoothed mean.",
}


def panels(results: Results) -> list[Panel]:
    """All panels that the study has data for, in the order of the report."""
    found = [*_forests(results), *_by_timestep(results)]
    for sweep in sweeps(results.study):
        found += _sweep_panels(results, sweep)
    found += _curves(results)
    names: dict[str, int] = {}
    unique = []
    for panel in found:
        name = re.sub(r"[^a-z0-9]+", "_", panel.name.lower()).strip("_")
        names[name] = names.get(name, 0) + 1
        suffix = "" if names[name] == 1 else f"_{names[name]}"
        unique.append(Panel(name + suffix, panel.section, panel.title, panel.draw, panel.inches))
    return unique


def _pages(arms: list[Arm], title: str) -> Iterator[tuple[str, list[tuple[int, Arm]]]]:
    """A title and numbered arms for each panel: the baseline, and as many others as colours can tell apart."""
    others = arms[1:]
    pages = max(1, -(-len(others) // (ARMS_A_PANEL - 1)))
    ends = [round(i * len(others) / pages) for i in range(pages + 1)]
    for i, (begin, end) in enumerate(pairwise(ends)):
        numbered = f"{title} ({i + 1} of {pages})" if pages > 1 else title
        yield numbered, list(enumerate([arms[0], *others[begin:end]]))


# --- differences --------------------------------------------------------------------------------------------


def _forests(results: Results) -> Iterator[Panel]:
    for metric in results.metrics:
        rows = [row for row in results.rows if metric.key in row.differences]
        for at in range(0, len(rows), ROWS_A_PANEL):
            part = rows[at : at + ROWS_A_PANEL]
            inches = (4.9, 1.1 + 0.27 * len(part))
            draw = partial(_forest, rows=part, metric=metric)
            yield Panel(f"difference {metric.key}", DIFFERENCES, metric.title, draw, inches)


def _forest(axis: Any, rows: list[Row], metric: Metric) -> None:
    fill = {"●": "full", "◐": "left", "○": "none"}
    for y, row in enumerate(rows):
        found = row.differences[metric.key]
        if not found.mark:
            axis.plot(found.mean, y, "x", color=MUTED)
            continue
        colour = MUTED if found.mark == "○" else INK
        axis.plot([found.low, found.high], [y, y], color=colour, linewidth=1.2)
        axis.plot(found.mean, y, "o", color=colour, fillstyle=fill[found.mark], markerfacecoloralt="none", markersize=6)
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.set_yticks(range(len(rows)), [shortened(row.arm.label) for row in rows])
    axis.set(ylim=(len(rows) - 0.4, -0.6), xlabel=f"{metric.label}, less the baseline's")
    axis.grid(visible=False, axis="y")
    axis.locator_params(axis="x", nbins=5)


# --- by timestep --------------------------------------------------------------------------------------------


def _by_timestep(results: Results) -> Iterator[Panel]:
    baseline = results.study.baseline
    for term, label in (("x0_error", "x0 error"), ("diffusion", "diffusion loss"), ("token", "token loss")):
        keys = bins_of(set(baseline.first.curves), term)
        if not keys:
            continue
        arms = [arm for arm in results.study.arms if not obstacles(keys[0], arm.config, baseline.config)]
        for title, page in _pages(arms, f"{label} by timestep"):
            yield Panel(f"timestep {term}", BY_TIMESTEP, title, partial(_bins, page=page, keys=keys))
            if term == "x0_error" and len(page) > 1:
                draw = partial(_bins_less_baseline, page=page, keys=keys)
                yield Panel(f"timestep {term} difference", BY_TIMESTEP, f"{title}, less the baseline's", draw)


def _centres(keys: list[str]) -> list[float]:
    ends = [key.rpartition("/")[2].split("-") for key in keys]
    return [(float(low) + float(high)) / 2 for low, high in ends]


def _bins(axis: Any, page: list[tuple[int, Arm]], keys: list[str]) -> None:
    for i, arm in page:
        cells = [last_cell(arm, key) for key in keys]
        means = [cell.mean for cell in cells]
        spread = [cell.sd if isfinite(cell.sd) else 0.0 for cell in cells]
        style = style_of(i) | {"marker": marker_of(i), "markersize": 3.5, "capsize": 2}
        axis.errorbar(_centres(keys), means, spread, label=shortened(arm.label), **style)
    axis.set(xlabel="timestep, as a share of all", xlim=(0, 1), ylim=(0, None))


def _bins_less_baseline(axis: Any, page: list[tuple[int, Arm]], keys: list[str]) -> None:
    baseline = page[0][1]
    width = 0.06 / max(len(page) - 1, 1)
    for i, arm in page[1:]:
        shared = sorted(arm.runs.keys() & baseline.runs.keys())
        if not shared or not all(key in run.curves for key in keys for a in (arm, baseline) for run in a.runs.values()):
            continue
        there_TS = np.array([[baseline.runs[seed].last(key) for seed in shared] for key in keys], float)
        here_TS = np.array([[arm.runs[seed].last(key) for seed in shared] for key in keys], float)
        found = paired(100 * (here_TS - there_TS) / there_TS)
        half = (
            np.zeros(len(keys)) if unpaired_by(arm.config, baseline.config) else np.nan_to_num(found.high - found.mean)
        )
        x = np.array(_centres(keys)) + (i - len(page) / 2) * width
        style = style_of(i) | {"marker": marker_of(i), "markersize": 3.5, "capsize": 2, "linewidth": 1}
        axis.errorbar(x, found.mean, half, label=shortened(arm.label), **style)
    axis.axhline(0, color=INK, linewidth=0.8)
    axis.set(xlabel="timestep, as a share of all", ylabel="difference, %", xlim=(0, 1))


# --- sweeps -------------------------------------------------------------------------------------------------


def _sweep_panels(results: Results, sweep: Sweep) -> Iterator[Panel]:
    by_label = {row.arm.label: row for row in results.rows}
    for metric in results.metrics:
        cells = {at: by_label[arm.label].cells[metric.key] for at, arm in sweep.arms.items()}
        if len({at[0] for at, cell in cells.items() if cell.filled}) < 2:
            continue  # what does not compare along the first setting is no sweep of it
        name = f"{metric.key} {' '.join(sweep.keys)}"
        if len(sweep.keys) == 2:
            rows, columns = len(sweep.values[1]), len(sweep.values[0])
            inches = (max(3.2, 1.4 + 0.95 * columns), 1.3 + 0.55 * rows)
            yield Panel(f"map {name}", SWEEPS, metric.title, partial(_heat_map, sweep=sweep, cells=cells), inches)
        yield Panel(f"lines {name}", SWEEPS, metric.title, partial(_lines, sweep=sweep, cells=cells))


def _heat_map(axis: Any, sweep: Sweep, cells: dict[tuple[float, ...], Any]) -> None:
    xs, ys = sweep.values
    values = np.array([[cells[x, y].mean for x in xs] for y in ys])
    image = axis.imshow(values, cmap="cividis", aspect="auto")
    low, high = np.nanmin(values), np.nanmax(values)
    for row, y in enumerate(ys):
        for column, x in enumerate(xs):
            cell = cells[x, y]
            if not cell.filled:
                axis.text(column, row, "≠", ha="center", va="center", color=MUTED)
                continue
            dark = high == low or (cell.mean - low) / (high - low) < 0.55
            spread = f"\n±{number(cell.sd, cell.sd)}" if isfinite(cell.sd) and cell.sd > 0 else ""
            text = f"{number(cell.mean, cell.sd)}{spread}"
            axis.text(column, row, text, ha="center", va="center", color="#ffffff" if dark else "#111111", fontsize=8)
    axis.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    axis.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    axis.set(xlabel=sweep.keys[0], ylabel=sweep.keys[1])
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.figure.colorbar(image, ax=axis, shrink=0.9).outline.set_visible(False)


def _lines(axis: Any, sweep: Sweep, cells: dict[tuple[float, ...], Any]) -> None:
    xs = sweep.values[0]
    seconds: list[tuple[float, ...]] = [()] if len(sweep.keys) == 1 else [(y,) for y in sweep.values[1]]
    beside = 0.008 * (xs[-1] - xs[0])  # so that error bars do not hide each other
    for i, second in enumerate(seconds):
        there = [(x, cells[(x, *second)]) for x in xs if cells[(x, *second)].filled]
        if not there:
            continue
        spread = [cell.sd if isfinite(cell.sd) else 0.0 for _, cell in there]
        axis.errorbar(
            [x + (i - (len(seconds) - 1) / 2) * beside for x, _ in there],
            [cell.mean for _, cell in there],
            spread,
            color=COLOURS[i % len(COLOURS)],
            marker=marker_of(i),
            markersize=4,
            capsize=2.5,
            label=f"{sweep.keys[1]} = {second[0]:g}" if second else None,
        )
    axis.set(xlabel=sweep.keys[0])


# --- curves -------------------------------------------------------------------------------------------------


def _curves(results: Results) -> Iterator[Panel]:
    baseline = results.study.baseline
    keys = [(f"train/{term}", f"training {term} loss", TRAINING) for term in TERMS]
    logged = sorted({key for run in baseline.runs.values() for key in run.curves if key.endswith("/grad_cosine")})
    keys += [(key, f"gradient cosine, tap {key.split('/')[1]}", GRADIENTS) for key in logged]
    for key, title, section in keys:
        arms = [arm for arm in results.study.arms if not obstacles(key, arm.config, baseline.config)]
        arms = [arm for arm in arms if any(key in run.curves for run in arm.runs.values())]
        if not arms:
            continue
        for numbered, page in _pages(arms, title):
            yield Panel(f"curve {key}", section, numbered, partial(_curve, page=page, key=key))


def _curve(axis: Any, page: list[tuple[int, Arm]], key: str) -> None:
    for i, arm in page:
        raw = [run.curves[key] for run in arm.runs.values() if key in run.curves]
        for curve in raw:
            axis.plot(*curve, color=style_of(i)["color"], alpha=0.25, linewidth=0.5, rasterized=True)
        smooth = smoothed(raw)
        axis.plot(*smooth, **style_of(i), label=shortened(arm.label), zorder=3)
    axis.set(xlabel="step")
    if key.endswith("grad_cosine"):
        axis.axhline(0, color=MUTED, linewidth=0.8)


def smoothed(curves: list[Curve]) -> Curve:
    """The mean over seeds, then a centred running mean over 5 % of the logged points; at the ends over fewer."""
    steps = np.concatenate([curve.steps for curve in curves])
    values = np.concatenate([curve.values for curve in curves])
    finite = np.isfinite(values)
    unique, where = np.unique(steps[finite], return_inverse=True)
    mean = np.bincount(where, values[finite]) / np.bincount(where)
    window = np.ones(min(2 * int(len(unique) * SMOOTHED_OVER / 2) + 1, len(unique)))
    return Curve(unique, np.convolve(mean, window, "same") / np.convolve(np.ones_like(mean), window, "same"))
