"""What goes with the gain: over the arms of a study, the rank correlation between values early in training and the gain
over the baseline at the end.

The early values are those of all columns of validation and of evaluations during training, at the first step that all
arms with the column have, and the cosine between the gradients at the taps. The gains are in the diffusion loss and in
the first FD whose features are not an arm's teacher's.

Shapes: A arms.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from urepa.core.escaping import markdown as md
from urepa.core.escaping import spreadsheet_text
from urepa.core.evaluation_protocols import Metric
from urepa.core.text_tables import Table
from urepa.reports.comparison.by_step import curve_of, value_at
from urepa.reports.comparison.metric_columns import GRADIENT_COSINE
from urepa.reports.comparison.number_format import p_value, signed_number
from urepa.reports.comparison.ranking import fair_distances, gain_of
from urepa.reports.comparison.read_runs import Run
from urepa.reports.comparison.results import ArmRow, Results
from urepa.reports.comparison.seed_cells import over_seeds
from urepa.reports.comparison.statistics import holm, rank_correlation
from urepa.reports.comparison.steps_saved import DIFFUSION

LEAST = 7  # arms: with six, no p is below 2/720, which Holm's correction over 18 rows makes 0.05
GRADIENTS = Metric("tap/*/grad_cosine", "gradient cosine at the taps", "")  # not validated: of training, up to the step


@dataclass(frozen=True)
class Predictor:
    """The correlation over `arms` (labels) between the mean of `early` over seeds at `step` and the gain in `gain`."""

    early: Metric
    step: int
    gain: Metric
    arms: tuple[str, ...]
    rho: float
    p: float
    p_holm: float


def predictors(results: Results) -> list[Predictor]:
    """All pairs of an early value and a gain that at least `LEAST` arms have, with Holm's p over all of them. Arms that
    differ only after the early step have one value there and count once for `LEAST`. The baseline is one of the arms
    where it has the value, with a gain of 0."""
    ends = [metric for metric in results.metrics if metric.key == DIFFUSION] + fair_distances(results)[:1]
    by_metric = [(metric, _gains(results, metric)) for metric in ends]
    found = []
    for early, step, value_of in _early_values(results):
        values = {row.arm.label: value for row in results.rows if (value := value_of(row)) is not None}
        for metric, gains in by_metric:
            arms = tuple(label for label in values if label in gains)
            early_A, gain_A = (np.array([of[label] for label in arms]) for of in (values, gains))
            if len(set(early_A)) >= LEAST and len(set(gain_A)) > 1:
                found.append(Predictor(early, step, metric, arms, *rank_correlation(early_A, gain_A), np.nan))
    adjusted = holm(np.array([one.p for one in found]))
    return [replace(one, p_holm=float(p)) for one, p in zip(found, adjusted, strict=True)]


def _gains(results: Results, metric: Metric) -> dict[str, float]:
    found = {row.arm.label: gain_of(results, row, metric) for row in results.rows}
    return {label: value for label, value in found.items() if value is not None}


def _early_values(results: Results) -> list[tuple[Metric, int, Callable[[ArmRow], float | None]]]:
    """The columns with values before the end: each with the step, and the mean over an arm's seeds at it."""
    found: list[tuple[Metric, int, Callable[[ArmRow], float | None]]] = []
    for metric in results.metrics:
        step = _first_common_step(results, metric.key)
        if step is not None:
            found.append((metric, step, partial(_at_step, key=metric.key, step=step)))
    if found:
        first = min(step for _, step, _ in found)
        found.append((GRADIENTS, first, partial(_gradients, step=first)))
    return found


def _first_common_step(results: Results, key: str) -> int | None:
    """The first step before the end at which all runs with the metric have it; None if there is none. Arms without a
    comparable value at the end are left out."""
    runs = [
        (run, curve)
        for row in results.rows
        if row.cells[key].has_value
        for run in row.arm.runs.values()
        if (curve := curve_of(run, key)) is not None
    ]
    steps = [{int(step) for step in curve.steps if step < run.last_step} for run, curve in runs]
    steps = [of_run for of_run in steps if of_run]  # a run without early values does not count for this metric
    return min(set.intersection(*steps), default=None) if steps else None


def _at_step(row: ArmRow, key: str, step: int) -> float | None:
    if not row.cells[key].has_value:
        return None
    curves = [curve_of(run, key) for run in row.arm.runs.values()]
    return _mean([None if curve is None else value_at(curve, step) for curve in curves])


def _gradients(row: ArmRow, step: int) -> float | None:
    if not row.cells[DIFFUSION].has_value:  # another diffusion loss has other gradients
        return None
    return _mean([_cosine(run, step) for run in row.arm.runs.values()])


def _cosine(run: Run, step: int) -> float | None:
    """The mean cosine of a run's taps over all logged steps up to this one; None if it logs none. Step 1 is left out:
    the cosine is 0 there if the backbone's last layer begins at 0."""
    curves = [curve for key, curve in run.curves.items() if key.endswith(GRADIENT_COSINE)]
    values = [value for curve in curves for value in curve.values[(curve.steps > 1) & (curve.steps <= step)]]
    return float(np.mean(values)) if values else None


def _mean(by_seed: list[float | None]) -> float | None:
    cell = over_seeds(by_seed)
    return cell.mean if cell.has_value else None


# --- table, text and file -----------------------------------------------------------------------------------


def predictors_table(found: Sequence[Predictor]) -> Table:
    """The correlations, the smallest p first."""
    found = sorted(found, key=lambda one: (one.p_holm, one.p))
    rows = tuple(
        (
            one.early.title,
            str(one.step),
            one.gain.title,
            str(len(one.arms)),
            signed_number(one.rho, 0.1),
            p_value(one.p),
            p_value(one.p_holm),
        )
        for one in found
    )
    headers = ("early value", "at step", "gain in", "arms", "Spearman's ρ", "p", "p after Holm")
    return Table("early values and the gain at the end", headers, rows)


def explanation(results: Results, found: Sequence[Predictor]) -> str:
    """What the table is, and how little follows from it."""
    most = max((len(one.arms) for one in found), default=0)
    return (
        f"Spearman's rank correlation, over at most {most} arms, between a value early in training (mean over seeds) "
        f"and the gain at the end over {results.study.baseline.label}, which counts as an arm with a gain of 0 where "
        "it has the value. An arm that changes something besides the alignment counts with its whole gain. ρ above 0: "
        "the higher the value, the larger the gain. p is that of random orders of the arms. Arms are few, are variants "
        f"of one another, and share seeds and data; {len(found)} correlations were tried, for which Holm's p is "
        "corrected. Take a correlation as a question for another study, and compare it with that of the early "
        "diffusion loss itself."
    )


def predictors_text(results: Results, found: Sequence[Predictor]) -> str:
    """The table as Markdown, with its explanation; "" without correlations."""
    if not found:
        return ""
    table = predictors_table(found)
    return f"\n{table.title[0].upper()}{table.title[1:]}. {md(explanation(results, found))}\n\n{table.markdown()}\n"


def predictors_csv(found: Sequence[Predictor]) -> str:
    """`predictors.csv`: one row per correlation, in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["early value", "step", "gain", "arms", "rho", "p", "p_holm", "labels"])
    for one in found:
        numbers = (one.rho, one.p, one.p_holm)
        labels = spreadsheet_text("; ".join(one.arms))
        writer.writerow([one.early.key, one.step, one.gain.key, len(one.arms), *numbers, labels])
    return text.getvalue()
