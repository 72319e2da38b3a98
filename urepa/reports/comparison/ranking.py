"""The arms in the order of their gain over the baseline, with what each costs."""

from __future__ import annotations

from math import inf, isfinite

from urepa.core.evaluation_protocols import Metric
from urepa.core.text_tables import Table
from urepa.reports.comparison.by_step import Course
from urepa.reports.comparison.number_format import percent
from urepa.reports.comparison.results import ArmRow, Results, difference_metrics
from urepa.reports.comparison.steps_saved import CIRCULAR, DIFFUSION, FD
from urepa.reports.comparison.tables import NOT_THERE, cell_text, clock_text, difference_text, steps_to_baseline_text

PROBE = "final/tap_linear_probe"
LEAST = 2  # arms beside the baseline; of one there is no order
SECONDS = "s/step"
ORDER = (
    "Arms by their gain in the first of these columns; its mark says whether a gain is more than noise. Its interval "
    "and p are those of the differences; the order among arms whose intervals overlap means nothing."
)


def ranking(results: Results) -> Table | None:
    """The table, best arm first, with the baseline at its place; None for fewer than two arms beside it, or if no arm
    has a difference in the metric by which they are ranked: the first FD whose features are not an arm's teacher's,
    else the validation diffusion loss."""
    metric = _ranked_by(results)
    if metric is None or len(results.rows) <= LEAST:
        return None
    course = next((course for course in results.races if course.metric.key == metric.key), None)
    others = [m for m in results.metrics if m.key == PROBE or (m.key.startswith(FD) and m.key != metric.key)]
    baseline = results.study.baseline.label
    headers = (
        "arm",
        metric.title,
        f"gain over {baseline}",
        "cost of a step",
        *(m.title for m in others),
        *([f"as good as {baseline} after steps", "after minutes"] if course else []),
    )
    gains = {row.arm.label: gain_of(results, row, metric) for row in results.rows}
    known = {label: -inf if gain is None else gain for label, gain in gains.items()}
    rows = sorted(results.rows, key=lambda row: known[row.arm.label], reverse=True)
    return Table(
        f"ranking by {metric.label}",
        headers,
        tuple(_row(results, row, metric, others, course) for row in rows),
    )


def _ranked_by(results: Results) -> Metric | None:
    """The metric by which arms are ranked, if an arm has a difference in it."""
    shown = [m for m in difference_metrics(results) if any(m.key in row.differences for row in results.rows)]
    return next(iter([*fair_distances(results), *(m for m in shown if m.key == DIFFUSION)]), None)


def fair_distances(results: Results) -> list[Metric]:
    """The FD in which an arm has a difference and whose features are not those of an arm's teacher."""
    arms = [row.arm for row in results.rows]
    shown = [m for m in difference_metrics(results) if any(m.key in row.differences for row in results.rows)]
    of_teachers = {m.key for m in shown if any(arm.has(CIRCULAR + m.key.removeprefix(FD)) for arm in arms)}
    return [m for m in shown if m.key.startswith(FD) and m.key not in of_teachers]


def gain_of(results: Results, row: ArmRow, metric: Metric) -> float | None:
    """How much better an arm is than the baseline at the end; None if that is not known."""
    if row.arm is results.study.baseline:
        return 0.0
    found = row.differences.get(metric.key)
    if found is None or not isfinite(found.mean):
        return None
    return found.mean if metric.better == "↑" else -found.mean


def _row(results: Results, row: ArmRow, metric: Metric, others: list[Metric], course: Course | None) -> tuple[str, ...]:
    is_baseline = row.arm is results.study.baseline
    reached = () if course is None else (steps_to_baseline_text(course, row.arm.label), _minutes(results, course, row))
    return (
        row.arm.label,
        cell_text(row.cells[metric.key]),
        NOT_THERE if is_baseline else difference_text(results, row, metric.key),
        _cost(results, row),
        *(cell_text(row.cells[m.key]) for m in others),
        *reached,
    )


def _cost(results: Results, row: ArmRow) -> str:
    """`0.043 (112 %)`: seconds of a step, and their share of the baseline's."""
    here, there = row.costs[SECONDS], results.rows[0].costs[SECONDS]
    if not here.has_value:
        return NOT_THERE
    return f"{here.mean:.3g} s{percent(here.mean / there.mean) if there.has_value and there.mean else ''}"


def _minutes(results: Results, course: Course, row: ArmRow) -> str:
    return clock_text(results, course, row.arm.label) if results.clock.is_known else NOT_THERE


def ranking_text(results: Results) -> str:
    """The table as Markdown, with its explanation; "" without one."""
    table = ranking(results)
    return "" if table is None else f"\n{table.title[0].upper()}{table.title[1:]}. {ORDER}\n\n{table.markdown()}\n"
