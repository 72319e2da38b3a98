"""The numbers of a study: one cell per arm and metric, and the differences to the baseline.

Shapes: A arms, S seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite, nan

import numpy as np

from urepa.core.evaluation_protocols import TEACHER, Metric
from urepa.reports.comparison.arms import Arm, ComparedArms
from urepa.reports.comparison.by_clock import ByClock, by_clock
from urepa.reports.comparison.by_step import Course, courses, incomparable
from urepa.reports.comparison.comparable import differing_keys, noise_schedule_keys, unpairing_keys
from urepa.reports.comparison.metric_columns import bins_of, is_reference, metrics_of, reference_key, row_labels
from urepa.reports.comparison.read_runs import Run
from urepa.reports.comparison.seed_cells import Cell, over_seeds
from urepa.reports.comparison.statistics import bootstrap, holm, paired_interval, welch_interval

SIGNIFICANT = 0.05
TEACHERS_TOKENS = ("teacher", "data.token_dtype")  # settings that distinguish one teacher's tokens from another's
PAIRED, SAME_SEEDS, OTHER_SEEDS = "paired", "same seed, not paired", "other seeds, not paired"


@dataclass(frozen=True)
class Difference:
    """Arm minus baseline: mean, 95 % interval, p, and Holm's p over the arms. NaN, with the reason in `why`, if there
    is none."""

    mean: float
    low: float
    high: float
    p: float
    n: int
    how: str
    p_holm: float = nan
    bootstrap: tuple[float, float] | None = None
    why: str = ""

    @property
    def mark(self) -> str:
        """● the interval excludes 0, after Holm too; ◐ it excludes 0, but not after Holm; ○ it does not."""
        if not isfinite(self.p):
            return ""
        if self.low <= 0 <= self.high:
            return "○"
        return "●" if self.p_holm < SIGNIFICANT else "◐"


@dataclass(frozen=True)
class ArmRow:
    """An arm's row in the table: cells and differences by metric key, costs by name."""

    arm: Arm
    cells: dict[str, Cell]
    differences: dict[str, Difference]
    costs: dict[str, Cell]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Results:
    """All data of the tables, the figures and the report."""

    study: ComparedArms
    metrics: tuple[Metric, ...]
    bins: tuple[str, ...]  # keys of the error of the implied x0, by timestep
    rows: tuple[ArmRow, ...]
    references: dict[str, Cell]
    courses: tuple[Course, ...]
    clock: ByClock

    @property
    def races(self) -> tuple[Course, ...]:
        """The courses in which the baseline has a final value that arms can reach."""
        return tuple(course for course in self.courses if course.reached)


def gigabytes(run: Run) -> float | None:
    peak = run.facts.get("peak_memory_bytes")
    return None if peak is None else peak / 1e9


def trainable(run: Run) -> float | None:
    """The number of trainable parameters, in millions."""
    counts = run.facts.get("parameters")
    return None if counts is None else sum(n for name, n in counts.items() if name.endswith("_trainable")) / 1e6


def seconds_a_step(run: Run) -> float | None:
    seconds = run.facts.get("seconds")
    return None if seconds is None else seconds["training"] / run.facts["step"]


def gpu_hours(run: Run) -> float | None:
    """GPU hours of training; None for a run without a GPU."""
    if "seconds" not in run.facts or not run.facts["device"].startswith("cuda"):
        return None
    return run.facts["seconds"]["training"] * run.facts["processes"] / 3600


COSTS: dict[str, Callable[[Run], float | None]] = {
    "trainable, M": trainable,
    "s/step": seconds_a_step,
    "GPU-hours": gpu_hours,
    "peak memory, GB": gigabytes,
}


def summarise(study: ComparedArms) -> Results:
    """Computes all cells and differences of a study."""
    runs = [run for arm in study.arms for run in arm.runs.values()]
    keys = {key for run in runs for key in run.curves}
    metrics, bins = metrics_of(keys), bins_of(keys, "x0_error")
    shown = [metric.key for metric in metrics] + bins
    cells = [{key: _comparable_cell(study, arm, key) for key in shown} for arm in study.arms]
    differences: list[dict[str, Difference]] = [{} for _ in study.arms]
    for key in (metric.key for metric in metrics):
        family = [
            _difference(arm, study.baseline, key) if cells[i][key].has_value and cells[0][key].has_value else None
            for i, arm in enumerate(study.arms)
            if i > 0
        ]
        adjusted = holm(np.array([nan if d is None else d.p for d in family]))
        for into, difference, p_holm in zip(differences[1:], family, adjusted, strict=True):
            if difference is not None:
                into[key] = replace(difference, p_holm=float(p_holm))
    rows = tuple(
        ArmRow(arm, cells[i], differences[i], _costs(arm), _notes(arm, study.baseline))
        for i, arm in enumerate(study.arms)
    )
    references = {key: _reference(study, key) for key in sorted(keys) if is_reference(key)}
    ways = courses(study, tuple(metrics))
    return Results(study, tuple(metrics), tuple(bins), rows, references, ways, by_clock(study, ways))


def difference_metrics(results: Results) -> list[Metric]:
    """The metrics that have a column of differences, including those for which only the reason for a missing difference
    is known."""
    return [
        m
        for m in results.metrics
        if any(m.key in r.differences or missing_reason(results, r, m.key) for r in results.rows)
    ]


def missing_reason(results: Results, row: ArmRow, key: str) -> str:
    """The reason why an arm with a value has no difference (the baseline's value is not finite); else ""."""
    baseline = results.rows[0].cells[key]
    lost = row.cells[key].has_value and baseline.why.startswith("not finite")
    return f"baseline {baseline.why}" if lost else ""


def last_cell(arm: Arm, key: str) -> Cell:
    """The last values of a metric over the arm's seeds."""
    return over_seeds([run.last(key) for run in arm.runs.values()])


def _reference(study: ComparedArms, key: str) -> Cell:
    """The baseline's value, or that of the first arm that has one, because an arm without a teacher has no reference
    values of a teacher."""
    cells = [last_cell(arm, key) for arm in study.arms]
    return next((cell for cell in cells if cell.has_value), cells[0])


def reference_rows(results: Results) -> dict[str, dict[str, Cell]]:
    """The reference rows below the arms: reference values that were measured in the same way, by label and metric."""
    rows: dict[str, dict[str, Cell]] = {}
    for label in row_labels(results.metrics):
        for metric in results.metrics:
            key = reference_key(metric, label)
            if key in results.references:
                whose = _teacher_note(results.study, key) if label == TEACHER else ""
                rows.setdefault(f"{label}{whose}", {})[metric.key] = results.references[key]
    return rows


def _teacher_note(study: ComparedArms, key: str) -> str:
    """Names the arm whose teacher's score `_reference` shows, if the arms have different teachers; else ""."""
    having = [arm for arm in study.arms if last_cell(arm, key).has_value]
    if not any(differing_keys(arm.config, having[0].config, TEACHERS_TOKENS) for arm in having):
        return ""
    return f" (of {having[0].label}'s teacher)"


def other_references(results: Results) -> dict[str, Cell]:
    """The reference values that are in no row."""
    placed = {one.key for metric in results.metrics for one in metric.beside if one.row}
    return {key: cell for key, cell in results.references.items() if key not in placed}


def _comparable_cell(study: ComparedArms, arm: Arm, key: str) -> Cell:
    """The arm's cell. Empty if it is not comparable with the baseline's (or, if that has none, the first arm's)."""
    cell, why = last_cell(arm, key), incomparable(study, arm, key)
    return why if cell.has_value and why is not None else cell


def _difference(arm: Arm, baseline: Arm, key: str) -> Difference:
    here = {seed: v for seed, run in arm.runs.items() if (v := run.last(key)) is not None}
    there = {seed: v for seed, run in baseline.runs.items() if (v := run.last(key)) is not None}
    shared = sorted(here.keys() & there.keys())
    if is_paired(set(here), set(there)) and not unpairing_keys(arm.config, baseline.config):
        by_seed = np.array([here[seed] - there[seed] for seed in shared])
        found, n, how, resampled = paired_interval(by_seed), len(shared), PAIRED, bootstrap(by_seed)
    else:
        found = welch_interval(np.array(list(here.values())), np.array(list(there.values())))
        n, how, resampled = min(len(here), len(there)), OTHER_SEEDS if len(shared) < 2 else SAME_SEEDS, None
    why = ""
    if not isfinite(found.p):
        why = "one seed: no interval" if n < 2 else "the same in every seed: no interval"
    mean, low, high, p = (float(value) for value in found)
    return Difference(mean, low, high, p, n, how, bootstrap=resampled, why=why)


def is_paired(here: set[int], there: set[int]) -> bool:
    """Whether differences are taken over the shared seeds. One shared seed has no interval; two unpaired seeds per arm
    have one."""
    shared = len(here & there)
    return shared > 1 or (shared == 1 and min(len(here), len(there)) < 2)


def _costs(arm: Arm) -> dict[str, Cell]:
    return {name: over_seeds([cost(run) for run in arm.runs.values()], "not recorded") for name, cost in COSTS.items()}


def _notes(arm: Arm, baseline: Arm) -> tuple[str, ...]:
    """Notes that a reader of this arm's row needs."""
    notes = []
    if different := unpairing_keys(arm.config, baseline.config):
        notes.append(f"same seed, not paired: {', '.join(different)} differs, so it saw other data or noise")
    elif not is_paired(set(arm.runs), set(baseline.runs)):
        shared = len(arm.runs.keys() & baseline.runs.keys())
        notes.append(f"not paired: it shares {'one seed alone' if shared else 'no seed'} with the baseline")
    for seed, run in arm.runs.items():
        if run.first_step > 1:
            notes.append(f"seed {seed}: its metrics begin at step {run.first_step}, its earlier metrics are not known")
    if noise := noise_schedule_keys(arm.config, baseline.config):
        notes.append(f"{', '.join(noise)} differs: the same timestep is another noise level")
    return tuple(notes)


def fewest_seeds(results: Results) -> int:
    """The smallest number of seeds of an arm."""
    return min(len(row.arm.runs) for row in results.rows)
