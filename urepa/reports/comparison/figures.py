"""The panels of a study's figures: differences, error by timestep, sweeps, training curves by step and by minute, and
gradients.

Shapes: T timestep bins, S seeds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import isfinite
from typing import Any

import numpy as np

from urepa.core.evaluation_protocols import Metric
from urepa.reports.comparison.arms import Arm, Sweep, sweeps
from urepa.reports.comparison.at_a_glance import at_a_glance
from urepa.reports.comparison.by_clock import INCLUDED, arm_minutes, clock_of, minutes_at
from urepa.reports.comparison.by_step import curve_of, incomparable
from urepa.reports.comparison.comparable import unpairing_keys
from urepa.reports.comparison.draw_panels import COLOURS, INK, MUTED, Panel, marker_of, shorten, style_of
from urepa.reports.comparison.metric_columns import GRADIENT_COSINE, bins_of
from urepa.reports.comparison.number_format import number
from urepa.reports.comparison.overlapping_lines import Line, Place, overlap
from urepa.reports.comparison.results import Difference, Results, last_cell
from urepa.reports.comparison.seed_cells import Cell
from urepa.reports.comparison.statistics import Array, paired_interval
from urepa.reports.comparison.tables import cell_text
from urepa.runs.curves import STRETCHES, Curve, thin_curve

ARMS_A_PANEL = 2 * len(COLOURS)  # the first arm and as many others as colours and dashes can distinguish
ROWS_A_PANEL = 40
SMOOTHED_OVER = 0.05  # share of the run
TICKS = 5  # at most on an axis: drawing a tick takes about as long as drawing a line
FEW_POINTS = 20  # a curve with so few points is drawn with markers
TERMS = ("total", "diffusion", "token", "manifold")
Values = tuple[tuple[float, ...], ...]
Cells = dict[tuple[float, ...], Cell]
HOLE = Cell()  # a combination of two settings that no arm has

DIFFERENCES, BY_TIMESTEP, SWEEPS, TRAINING, GRADIENTS = "differences", "timesteps", "sweeps", "curves", "gradients"
CLOCK = "clock"
BY_CLOCK = ("val/diffusion", "final/")  # prefixes; alignment losses say little about an arm's quality
CAPTIONS = {
    DIFFERENCES: "Mean difference with its 95 % interval. Filled: it excludes 0 after Holm over the arms; half-filled: "
    "before Holm only; open: it does not. Crosses have no interval.",
    BY_TIMESTEP: "The last logged validation (EMA weights) by timestep bin, mean and standard deviation over seeds. "
    "The error of the implied x0 is comparable for all objectives. The second panel shows the difference to the "
    "baseline in per cent, with 95 % intervals if seeds are paired.",
    SWEEPS: "Mean over seeds, with the standard deviation as error bars. ≠: not comparable with the baseline; –: "
    "not run or not measured.",
    CLOCK: f"{INCLUDED} Thin lines: every seed as logged. Thick lines: the mean over seeds at a step, over their mean "
    "minutes at that step.",
    TRAINING: "Thin lines: every seed as logged. Thick lines: the mean over seeds, averaged over 5 % of the run. EMA: "
    "measured with the averaged weights; training losses are measured with the raw weights. Where lines overlap, the "
    "first is solid and the others are dashed over it.",
    GRADIENTS: "Cosine between the gradients of the diffusion loss and of the alignment loss (before λ): below 0 they "
    "oppose each other. Thin lines: every seed as logged; thick lines: the smoothed mean.",
}


def panels(results: Results) -> list[Panel]:
    """All panels that the study has data for, in the order of the report."""
    found = [*_forests(results), *_by_timestep(results)]
    for sweep in sweeps(results.study):
        found += _sweep_panels(results, sweep)
    found += [*at_a_glance(results, CLOCK), *_by_clock(results), *_curves(results)]
    names: dict[str, int] = {}
    unique = []
    for panel in found:
        name = re.sub(r"[^a-z0-9]+", "_", panel.name.lower()).strip("_")
        names[name] = names.get(name, 0) + 1
        suffix = "" if names[name] == 1 else f"_{names[name]}"
        unique.append(replace(panel, name=name + suffix))
    return unique


def _pages(arms: list[Arm], title: str, baseline: Arm) -> Iterator[tuple[str, list[tuple[int, Arm]]]]:
    """A title and numbered arms for each panel: the first arm, and as many others as colours can distinguish. Only the
    baseline has number 0, which is drawn in ink."""
    first = 0 if arms[0] is baseline else 1
    others = arms[1:]
    pages = max(1, -(-len(others) // (ARMS_A_PANEL - 1)))
    ends = [round(i * len(others) / pages) for i in range(pages + 1)]
    for i, (begin, end) in enumerate(pairwise(ends)):
        numbered = f"{title} ({i + 1} of {pages})" if pages > 1 else title
        yield numbered, list(enumerate([arms[0], *others[begin:end]], first))


# --- differences --------------------------------------------------------------------------------------------


def _forests(results: Results) -> Iterator[Panel]:
    for metric in results.metrics:
        rows = [(row.arm.label, row.differences[metric.key]) for row in results.rows if metric.key in row.differences]
        for at in range(0, len(rows), ROWS_A_PANEL):
            part = rows[at : at + ROWS_A_PANEL]
            inches = (4.9, 1.1 + 0.27 * len(part))
            draw = partial(_forest, rows=part, metric=metric)
            yield Panel(f"difference {metric.key}", DIFFERENCES, metric.title, draw, inches)


def _forest(axis: Any, rows: list[tuple[str, Difference]], metric: Metric) -> None:
    fill = {"●": "full", "◐": "left", "○": "none"}
    for y, (_, found) in enumerate(rows):
        if not found.mark:
            axis.plot(found.mean, y, "x", color=MUTED)
            continue
        colour = MUTED if found.mark == "○" else INK
        axis.plot([found.low, found.high], [y, y], color=colour, linewidth=1.2)
        axis.plot(found.mean, y, "o", color=colour, fillstyle=fill[found.mark], markerfacecoloralt="none", markersize=6)
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.set_yticks(range(len(rows)), [shorten(label) for label, _ in rows])
    axis.set(ylim=(len(rows) - 0.4, -0.6), xlabel=f"{metric.label}, less the baseline's")
    axis.grid(visible=False, axis="y")
    axis.locator_params(axis="x", nbins=TICKS)


# --- by timestep --------------------------------------------------------------------------------------------


def _by_timestep(results: Results) -> Iterator[Panel]:
    study = results.study
    for term, label in (("x0_error", "x0 error"), ("diffusion", "diffusion loss"), ("token", "token loss")):
        keys = bins_of({key for arm in study.arms for key in arm.first.curves}, term)
        if not keys:
            continue
        arms = [arm for arm in study.arms if arm.has(keys[0]) and not incomparable(study, arm, keys[0])]
        for title, page in _pages(arms, f"{label} by timestep", study.baseline):
            lines = [(i, arm.label, *_by_bin(arm, keys)) for i, arm in page]
            yield _bins_panel(f"timestep {term}", title, lines, _centres(keys), "")
            if term == "x0_error" and len(page) > 1 and arms[0] is study.baseline:
                lines = [
                    (i, arm.label, *found)
                    for i, arm in page[1:]
                    if (found := _relative_difference(arm, study.baseline, keys))
                ]
                title = f"{title}, less the baseline's"
                yield _bins_panel(f"timestep {term} difference", title, lines, _centres(keys), "difference, %")


def _bins_panel(
    name: str, title: str, lines: list[tuple[int, str, Array, Array]], centres: list[float], of: str
) -> Panel:
    """A panel by timestep bin. Unless it shows differences, its axis begins at 0, which counts for overlaps."""
    zero = [] if of else [(np.zeros(1), np.zeros(1))]
    over = overlap([line[1] for line in lines], [(np.array(centres), line[2]) for line in lines], zero)
    draw = partial(_bins, lines=lines, places=over.places, centres=centres, of=of)
    return Panel(name, BY_TIMESTEP, title, draw, note=over.note)


def _centres(keys: list[str]) -> list[float]:
    ends = [key.rpartition("/")[2].split("-") for key in keys]
    return [(float(low) + float(high)) / 2 for low, high in ends]


def _by_bin(arm: Arm, keys: list[str]) -> tuple[Array, Array]:
    """Mean and standard deviation over seeds, each [T]."""
    cells = [last_cell(arm, key) for key in keys]
    return np.array([cell.mean for cell in cells]), np.nan_to_num([cell.sd for cell in cells])


def _relative_difference(arm: Arm, baseline: Arm, keys: list[str]) -> tuple[Array, Array] | None:
    """Mean relative difference to the baseline in per cent [T] and half its 95 % interval (0 if seeds are not
    paired)."""
    shared = sorted(arm.runs.keys() & baseline.runs.keys())
    values = [[[a.runs[seed].last(key) for seed in shared] for key in keys] for a in (arm, baseline)]
    if not shared or any(value is None for table in values for row in table for value in row):
        return None
    here_TS, there_TS = np.array(values, float)
    found = paired_interval(100 * (here_TS - there_TS) / there_TS)
    unpaired = unpairing_keys(arm.config, baseline.config)
    return found.mean, np.zeros(len(keys)) if unpaired else np.nan_to_num(found.high - found.mean)


def _bins(
    axis: Any, lines: list[tuple[int, str, Array, Array]], places: tuple[Place, ...], centres: list[float], of: str
) -> None:
    width = 0.06 / max(len(lines), 1) if of else 0.0
    for n, ((i, label, mean_T, half_T), place) in enumerate(zip(lines, places, strict=True)):
        x_T = np.array(centres) + (n - (len(lines) - 1) / 2) * width
        style = style_of(i) | {"marker": marker_of(i), "markersize": 3.5, "capsize": 2} | place.style
        axis.errorbar(x_T, mean_T, half_T, label=shorten(label), errorevery=place.every, **style)
    axis.set(xlabel="timestep, as a share of all", xlim=(0, 1), ylabel=of)
    axis.locator_params(nbins=TICKS)
    if of:
        axis.axhline(0, color=INK, linewidth=0.8)
    else:
        axis.set_ylim(0, None)


# --- sweeps -------------------------------------------------------------------------------------------------


def _sweep_panels(results: Results, sweep: Sweep) -> Iterator[Panel]:
    by_label = {row.arm.label: row for row in results.rows}
    for metric in results.metrics:
        cells = {at: by_label[arm.label].cells[metric.key] for at, arm in sweep.arms.items()}  # no missing ones
        if len({at[0] for at, cell in cells.items() if cell.has_value}) < 2:
            continue  # values that are not comparable along the first setting form no sweep
        name = f"{metric.key} {' '.join(sweep.keys)}"
        if len(sweep.keys) == 2:
            rows, columns = len(sweep.values[1]), len(sweep.values[0])
            inches = (max(3.2, 1.4 + 0.95 * columns), 1.3 + 0.55 * rows)
            draw = partial(_heat_map, keys=sweep.keys, values=sweep.values, cells=cells)
            yield Panel(f"map {name}", SWEEPS, metric.title, draw, inches)
        yield _lines_panel(name, metric, sweep.keys, sweep.values, cells)


def _heat_map(axis: Any, keys: tuple[str, ...], values: Values, cells: Cells) -> None:
    xs, ys = values
    means = np.array([[cells.get((x, y), HOLE).mean for x in xs] for y in ys])
    image = axis.imshow(means, cmap="cividis", aspect="auto")
    low, high = np.nanmin(means), np.nanmax(means)
    for row, y in enumerate(ys):
        for column, x in enumerate(xs):
            cell = cells.get((x, y), HOLE)
            if not cell.has_value:
                text = "not finite" if cell.why.startswith("not finite") else cell_text(cell)
                axis.text(column, row, text, ha="center", va="center", color=MUTED, fontsize=8)
                continue
            dark = high == low or (cell.mean - low) / (high - low) < 0.55
            spread = f"\n±{number(cell.sd, cell.sd)}" if isfinite(cell.sd) and cell.sd > 0 else ""
            text = f"{number(cell.mean, cell.sd)}{spread}"
            axis.text(column, row, text, ha="center", va="center", color="#ffffff" if dark else "#111111", fontsize=8)
    axis.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    axis.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    axis.set(xlabel=keys[0], ylabel=keys[1])
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.figure.colorbar(image, ax=axis, shrink=0.9).outline.set_visible(False)


def _sweep_series(keys: tuple[str, ...], values: Values, cells: Cells) -> list[tuple[str, list[tuple[float, Cell]]]]:
    """For each value of the second setting, a label and the filled cells over the first setting."""
    seconds: list[tuple[float, ...]] = [()] if len(keys) == 1 else [(y,) for y in values[1]]
    return [
        (
            f"{keys[1]} = {second[0]:g}" if second else "",
            [(x, cell) for x in values[0] if (cell := cells.get((x, *second), HOLE)).has_value],
        )
        for second in seconds
    ]


def _lines_panel(name: str, metric: Metric, keys: tuple[str, ...], values: Values, cells: Cells) -> Panel:
    lines = _sweep_series(keys, values, cells)
    curves = [(np.array([x for x, _ in there]), np.array([cell.mean for _, cell in there])) for _, there in lines]
    ends = [(np.zeros(2), cell.mean + np.nan_to_num(cell.sd) * np.array([-1, 1])) for _, t in lines for _, cell in t]
    over = overlap([label for label, _ in lines], curves, ends)
    draw = partial(_lines, key=keys[0], lines=lines, places=over.places, width=values[0][-1] - values[0][0])
    return Panel(f"lines {name}", SWEEPS, metric.title, draw, note=over.note)


def _lines(
    axis: Any, key: str, lines: list[tuple[str, list[tuple[float, Cell]]]], places: tuple[Place, ...], width: float
) -> None:
    beside = 0.008 * width  # offset, so that error bars do not overlap
    for i, ((label, there), place) in enumerate(zip(lines, places, strict=True)):
        if not there:
            continue
        style = {"color": COLOURS[i % len(COLOURS)], "marker": marker_of(i), "markersize": 4, "capsize": 2.5}
        axis.errorbar(
            [x + (i - (len(lines) - 1) / 2) * beside for x, _ in there],
            [cell.mean for _, cell in there],
            [cell.sd if isfinite(cell.sd) else 0.0 for _, cell in there],
            label=label or None,
            errorevery=place.every,
            **style | place.style,
        )
    axis.set(xlabel=key)


# --- curves -------------------------------------------------------------------------------------------------


def _curves(results: Results) -> Iterator[Panel]:
    study = results.study
    keys = [(f"train/{term}", f"training {term} loss", TRAINING) for term in TERMS]
    runs = [run for arm in study.arms for run in arm.runs.values()]
    logged = sorted({key for run in runs for key in run.curves if key.endswith(GRADIENT_COSINE)})
    keys += [(key, f"gradient cosine, tap {key.split('/')[1]}", GRADIENTS) for key in logged]
    keys += [(course.metric.key, _axis_label(course.metric), TRAINING) for course in results.courses]
    for key, title, section in keys:
        arms = [arm for arm in study.arms if _drawable(arm, key) and not incomparable(study, arm, key)]
        if not arms:
            continue
        for numbered, page in _pages(arms, title, study.baseline):
            lines = [(i, arm.label, *_curves_to_draw(_drawable(arm, key))) for i, arm in page]
            raw = [curve for line in lines for curve in line[2]]
            over = overlap([line[1] for line in lines], [line[3] for line in lines], raw)
            draw = partial(_curve, lines=lines, places=over.places, xlabel="step", zero=section == GRADIENTS)
            yield Panel(f"curve {key}", section, numbered, draw, note=over.note)


def _by_clock(results: Results) -> Iterator[Panel]:
    """The panels over minutes of the metrics that measure an arm's quality, for the arms whose times are known."""
    study, clock = results.study, results.clock
    for metric in (course.metric for course in results.courses if course.metric.key.startswith(BY_CLOCK)):
        known = [arm for arm in study.arms if clock.whole[arm.label].has_value and _drawable(arm, metric.key)]
        arms = [arm for arm in known if not incomparable(study, arm, metric.key)]
        if not arms:
            continue
        for numbered, page in _pages(arms, _axis_label(metric), study.baseline):
            lines = [(i, arm.label, *_curves_by_minute(arm, metric.key)) for i, arm in page]
            raw = [curve for line in lines for curve in line[2]]
            over = overlap([line[1] for line in lines], [line[3] for line in lines], raw)
            draw = partial(_curve, lines=lines, places=over.places, xlabel="minutes of training", zero=False)
            yield Panel(f"clock {metric.key}", CLOCK, numbered, draw, note=over.note)


def _curves_by_minute(arm: Arm, key: str) -> tuple[list[Line], Line]:
    """`_curves_to_draw` over minutes: each seed over its own minutes, the mean over the mean of the seeds' minutes."""
    seeds = [
        (minutes_at(clock, curve.steps), curve.values)
        for run in arm.runs.values()
        if (clock := clock_of(run)) is not None
        and (curve := curve_of(run, key)) is not None
        and np.isfinite(curve.values).any()
    ]
    mean = smooth(_drawable(arm, key))
    return seeds, (arm_minutes(arm, mean.steps), mean.values)


def _drawable(arm: Arm, key: str) -> list[Curve]:
    """The curves of the seeds that have any finite value."""
    curves = [curve for run in arm.runs.values() if (curve := curve_of(run, key)) is not None]
    return [curve for curve in curves if np.isfinite(curve.values).any()]


def _curves_to_draw(curves: list[Curve]) -> tuple[list[Curve], Curve]:
    """The seeds' curves and their smoothed mean, reduced to the points that are visible, because they are sent to
    another process."""
    return [thin_curve(curve) for curve in curves], smooth(curves)


def _axis_label(metric: Metric) -> str:
    """The label of a metric's axis: validation and evaluations use the EMA weights, training losses do not."""
    return f"validation (EMA): {metric.label}" if metric.key.startswith("val/") else f"{metric.label} (EMA)"


def _curve(
    axis: Any,
    lines: Sequence[tuple[int, str, Sequence[Line], Line]],
    places: tuple[Place, ...],
    xlabel: str,
    zero: bool,
) -> None:
    for (i, label, raw, mean), place in zip(lines, places, strict=True):
        for curve in raw:
            axis.plot(*curve, color=style_of(i)["color"], alpha=0.25, linewidth=0.5, rasterized=True)
        points = {"marker": marker_of(i), "markersize": 3.5} if len(mean[0]) <= FEW_POINTS else {}
        axis.plot(*mean, **style_of(i) | points | place.style, label=shorten(label), zorder=3)
    axis.set(xlabel=xlabel)
    axis.locator_params(nbins=TICKS)
    if zero:
        axis.axhline(0, color=MUTED, linewidth=0.8)


def smooth(curves: list[Curve]) -> Curve:
    """The mean over seeds [N], then a centred running mean over 5 % of the logged points, over fewer at the ends. More
    than `STRETCHES` points are averaged in that many stretches [G]. Requires at least one finite value."""
    finite = [Curve(c.steps[there], c.values[there]) for c in curves if (there := np.isfinite(c.values)).any()]
    steps_N = np.unique(np.concatenate([curve.steps for curve in finite]))
    sums_N, seeds_N = np.zeros(len(steps_N)), np.zeros(len(steps_N))
    for curve in finite:
        where = np.searchsorted(steps_N, curve.steps)
        sums_N += np.bincount(where, curve.values, len(steps_N))
        seeds_N += np.bincount(where, minlength=len(steps_N))
    sums_N /= seeds_N
    stretches = min(len(steps_N), STRETCHES)
    edges = np.linspace(0, len(steps_N), stretches + 1).astype(int)
    sums_G, points_G = np.add.reduceat(sums_N, edges[:-1]), np.diff(edges).astype(float)
    window = np.ones(min(2 * int(stretches * SMOOTHED_OVER / 2) + 1, stretches))
    mean_G = np.convolve(sums_G, window, "same") / np.convolve(points_G, window, "same")
    return Curve(steps_N[(edges[:-1] + edges[1:] - 1) // 2], mean_G)
