"""The overview figure: one arm and the baseline, two metrics, by step and by minutes of training.

Shapes: P points.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from urepa.reports.comparison.arms import Arm
from urepa.reports.comparison.by_clock import arm_minutes
from urepa.reports.comparison.by_step import Course, curve_of
from urepa.reports.comparison.draw_panels import INK, MUTED, Panel, marker_of, shorten, style_of
from urepa.reports.comparison.number_format import minutes, percent
from urepa.reports.comparison.results import Results, last_cell
from urepa.reports.comparison.steps_saved import arm_and_race, diffusion_race, fd_race

NAME = "at_a_glance"
INCHES = (8.0, 5.2)  # displayed at a width of 800 pixels
BEGINNING = 0.2  # share of the longest run; earlier values do not affect a panel's height
APART = 0.1  # share of a panel's height; labels that are closer than this are moved apart
ROOM = 0.45  # share of a panel's width; the width of the text below the dotted line
LONGEST = 20  # characters of a label beside a line
NOTE = (
    "Mean over seeds; the band spans the lowest to the highest seed. Dotted line: the baseline's final value. Circle: "
    "the mean over seeds of the first point at which the arm is as good as the baseline of the same seed at its end. "
    "Values of the first fifth of the run may lie above the panel."
)


class Ranges(NamedTuple):
    """A metric of an arm over its seeds: x, mean, lowest and highest value, each [P]."""

    x_P: NDArray[Any]
    mean_P: NDArray[np.float64]
    low_P: NDArray[np.float64]
    high_P: NDArray[np.float64]


@dataclass(frozen=True)
class Quarter:
    """One of the four panels: the lines of the baseline and the arm, the baseline's final value, the point where the
    arm reaches it (None: never), and the text for that point."""

    title: str
    xlabel: str
    lines: tuple[tuple[str, Ranges], ...]
    end: float
    reached: float | None
    caption: str


def at_a_glance(results: Results, section: str) -> list[Panel]:
    """The panel of the validation diffusion loss and an FD for the baseline and the arm of `arm_and_race`, by step and
    by minute. Empty if the study lacks one of the metrics or the times."""
    found = arm_and_race(results)
    if found is None:
        return []
    label, _ = found
    loss, fd = diffusion_race(results, label), fd_race(results, label)
    arms = [arm for arm in results.study.arms if arm is results.study.baseline or arm.label == label]
    if loss is None or fd is None or not all(results.clock.whole[arm.label].has_value for arm in arms):
        return []
    if not all(last_cell(arm, course.metric.key).has_value for arm in arms for course in (loss, fd)):
        return []  # a seed's final value is not finite
    quarters = tuple(quarter for course in (loss, fd) for quarter in _quarters(results, arms, course))
    title = f"{shorten(label)} and {shorten(results.study.baseline.label)} by step and by the clock"
    return [Panel(NAME, section, title, partial(_draw, quarters=quarters), INCHES, NOTE, grid=(2, 2))]


def _quarters(results: Results, arms: list[Arm], course: Course) -> tuple[Quarter, Quarter]:
    """The panels of one metric by step and by minute."""
    key, (baseline, arm) = course.metric.key, (arm.label for arm in arms)
    by_step = tuple((a.label, ranges(a, key)) for a in arms)
    by_minute = tuple((a.label, _by_minute(a, r)) for a, (_, r) in zip(arms, by_step, strict=True))
    end = float(by_step[0][1].mean_P[-1])
    steps, took, whole = course.reached[arm], results.clock.reached[key][arm], results.clock.whole[baseline]
    title, total = f"{'validation ' * key.startswith('val/')}{course.metric.title}", course.steps[-1]
    never = course.never[arm]
    some = f", {steps.n} of {steps.n + never} seeds" if never else ""
    in_steps = f"{steps.mean:,.0f} of {total:,}{percent(steps.mean / total)}{some}" if steps.has_value else ""
    in_minutes = (
        f"{minutes(took.mean)} of {minutes(whole.mean)}{percent(took.mean / whole.mean)}{some}"
        if took.has_value
        else ""
    )
    return (
        Quarter(title, "step", by_step, end, steps.mean if steps.has_value else None, in_steps),
        Quarter(title, "minutes of training", by_minute, end, took.mean if took.has_value else None, in_minutes),
    )


def ranges(arm: Arm, key: str) -> Ranges:
    """The metric over the seeds, at the steps at which every seed has a finite value."""
    curves = [curve for run in arm.runs.values() if (curve := curve_of(run, key)) is not None]
    by_step = [dict(zip(c.steps.tolist(), c.values.tolist(), strict=True)) for c in curves]
    shared = sorted(set.intersection(*(set(found) for found in by_step)))
    table = np.array([[found[step] for step in shared] for found in by_step])
    finite = np.isfinite(table).all(axis=0)
    values_SP = table[:, finite]
    return Ranges(np.array(shared)[finite], values_SP.mean(0), values_SP.min(0), values_SP.max(0))


def _by_minute(arm: Arm, found: Ranges) -> Ranges:
    return found._replace(x_P=arm_minutes(arm, found.x_P))


# --- drawing ------------------------------------------------------------------------------------------------


def _draw(axes: Any, quarters: tuple[Quarter, ...]) -> None:
    for i, (axis, quarter) in enumerate(zip(axes.flat, quarters, strict=True)):
        end = max(found.x_P[-1] for _, found in quarter.lines)
        _quarter(axis, quarter, end)
        low, high = height(quarters[i // 2 * 2])  # both panels of a row use the range of the one by step
        axis.set(xlabel=quarter.xlabel, xlim=(0, 1.04 * end), ylim=(low, high))
        axis.locator_params(nbins=5)
        if i % 2 == 0:
            axis.set_title(quarter.title)
        else:  # a row shares its y axis: tick labels on the left, names of lines on the right
            axis.tick_params(labelleft=False)
            _name(axis, quarter, low, high)


def _quarter(axis: Any, quarter: Quarter, end: float) -> None:
    """Draws one panel. `end`: the last step or minute of the longer line."""
    for i, (_, found) in enumerate(quarter.lines):
        style = style_of(i)
        axis.fill_between(found.x_P, found.low_P, found.high_P, color=style["color"], alpha=0.18, linewidth=0)
        axis.plot(found.x_P, found.mean_P, **style, marker=marker_of(i), markersize=3.5, zorder=3)
    axis.axhline(quarter.end, color=MUTED, linestyle=":", linewidth=1)
    if quarter.reached is not None:
        at = (quarter.reached, quarter.end)
        axis.plot(*at, "o", color="none", markeredgecolor=style_of(1)["color"], markeredgewidth=1.5, markersize=9)
        left, words = (at[0] > ROOM * end), {"textcoords": "offset points", "va": "top", "color": INK}
        place = at if left else (0.02 * end, at[1])  # below the falling line, inside the panel
        axis.annotate(quarter.caption, place, (0, -9), ha="right" if left else "left", **words)


def height(quarter: Quarter) -> tuple[float, float]:
    """Lowest and highest value of a panel, with room for the text below the dotted line. The first fifth of the run is
    ignored, because every curve falls steeply there."""
    begin = BEGINNING * max(found.x_P[-1] for _, found in quarter.lines)
    there = [bound[found.x_P >= begin] for _, found in quarter.lines for bound in (found.low_P, found.high_P)]
    low, high = float(np.concatenate(there).min()), float(np.concatenate(there).max())
    room = next(size for size in (high - low, abs(high), 1.0) if size > 0)  # the range may be 0, and so may the values
    return min(low - 0.06 * room, quarter.end - 0.22 * room), high + 0.06 * room


def _name(axis: Any, quarter: Quarter, low: float, high: float) -> None:
    """Writes the arms' labels next to the ends of their lines, moved apart where they would overlap."""
    heights = [(found.mean_P[-1] - low) / (high - low) for _, found in quarter.lines]
    short = (APART - abs(heights[0] - heights[1])) / 2
    upper = 0 if heights[0] >= heights[1] else 1
    if short > 0:
        heights[upper] += short
        heights[1 - upper] -= short
    for i, (label, _) in enumerate(quarter.lines):
        text = {"transform": axis.transAxes, "va": "center", "color": style_of(i)["color"], "fontweight": "bold"}
        axis.text(1.02, heights[i], shorten(label, LONGEST), **text)
