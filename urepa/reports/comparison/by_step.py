"""The course of training: metrics at several steps, and how early an arm reaches the baseline's final value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from urepa.core.evaluation_protocols import Metric
from urepa.reports.comparison.arms import Arm, ComparedArms
from urepa.reports.comparison.comparable import incomparable_keys
from urepa.reports.comparison.metric_columns import DURING
from urepa.reports.comparison.read_runs import Run
from urepa.reports.comparison.seed_cells import Cell, not_comparable, over_seeds
from urepa.runs.curves import Curve

SHOWN_AT_MOST = 8  # steps, as columns of a table
NEVER = "not reached"
TOTAL, LAMBDA = "val/total", "val/lambda"


@dataclass(frozen=True)
class Course:
    """The course of a metric. By the arm's label: `cells`, its values at `steps`; `reached`, the step at which it is
    first as good as the baseline of the same seed at its end (linear between logged points); `never`, the number of
    seeds that never are. `reached` and `never` are empty if the baseline has no final value. `by_seed` has that step
    for each seed that has a target (None: never)."""

    metric: Metric
    steps: tuple[int, ...]
    cells: dict[str, tuple[Cell, ...]]
    reached: dict[str, Cell]
    never: dict[str, int]
    by_seed: dict[str, dict[int, float | None]]


def curve_of(run: Run, key: str) -> Curve | None:
    """A metric over the steps. For an evaluation, the values during training followed by the final one."""
    if key == TOTAL:
        return _at_last_lambda(run)
    last = run.curves.get(key)
    before = run.curves.get(f"{DURING}{key.removeprefix('final/')}") if key.startswith("final/") else None
    if last is None or before is None:
        return last
    return Curve(np.append(before.steps, last.steps[-1]), np.append(before.values, last.values[-1]))


def _at_last_lambda(run: Run) -> Curve | None:
    """The total loss at the steps whose λ is the last one: during λ's warm-up, the total is a different quantity at
    every step."""
    total, lam = run.curves.get(TOTAL), run.curves.get(LAMBDA)
    if total is None or lam is None:
        return total
    same = np.isin(total.steps, lam.steps[lam.values == lam.values[-1]])
    return Curve(total.steps[same], total.values[same]) if same.any() else None


def _lambdas(arm: Arm) -> set[float | None]:
    """The λ of the last validation of each seed, with which the total was weighted."""
    return {run.last(LAMBDA) for run in arm.runs.values()}


def incomparable(study: ComparedArms, arm: Arm, key: str) -> Cell | None:
    """An empty cell with the reason if the arm's metric is not the same quantity as the reference arm's; else None."""
    other = study.reference_arm(key)
    different = incomparable_keys(key, arm.config, other.config)
    if key == TOTAL and not different and _lambdas(arm) != _lambdas(other):
        different = ["λ at the last validation"]
    return not_comparable(different, "" if other is study.baseline else other.label) if different else None


def courses(study: ComparedArms, metrics: tuple[Metric, ...]) -> tuple[Course, ...]:
    """The courses of all metrics that have a direction and that the baseline, or else another arm, has at two or more
    steps."""
    found = []
    for metric in metrics:
        curves = _curves(study.reference_arm(metric.key), metric.key)
        steps = sorted({int(step) for curve in curves.values() for step in curve.steps})
        if metric.better and len(steps) > 1:
            found.append(_course(study, metric, steps))
    return tuple(found)


def _curves(arm: Arm, key: str) -> dict[int, Curve]:
    """The arm's curves of a metric, by seed."""
    return {seed: curve for seed, run in arm.runs.items() if (curve := curve_of(run, key)) is not None}


def _course(study: ComparedArms, metric: Metric, steps: list[int]) -> Course:
    at = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), SHOWN_AT_MOST)).round().astype(int))
    shown = tuple(steps[i] for i in at)
    baseline = _curves(study.baseline, metric.key)
    cells, reached, never, by_seed = {}, {}, {}, {}
    for arm in study.arms:
        empty, curves = incomparable(study, arm, metric.key), _curves(arm, metric.key)
        cells[arm.label] = tuple(
            empty or over_seeds([value_at(curve, step) for curve in curves.values()]) for step in shown
        )
        if baseline:
            found = {} if empty else _steps_by_seed(curves, baseline, metric.better)
            by_seed[arm.label], never[arm.label] = found, list(found.values()).count(None)
            reached[arm.label] = empty or _steps_to_reach(found, baseline)
    return Course(metric, shown, cells, reached, never, by_seed)


def _steps_by_seed(curves: dict[int, Curve], baseline: dict[int, Curve], better: str) -> dict[int, float | None]:
    """The step at which each seed reaches the baseline's final value. A seed that the baseline lacks is compared with
    the mean over the baseline's finite seeds. Seeds without a finite target are left out."""
    ends = {seed: float(curve.values[-1]) for seed, curve in baseline.items()}
    finite = [end for end in ends.values() if np.isfinite(end)]
    if not finite:
        return {}
    targets = {seed: ends.get(seed, float(np.mean(finite))) for seed in curves}
    return {s: steps_to(curve, targets[s], better) for s, curve in curves.items() if np.isfinite(targets[s])}


def _steps_to_reach(by_seed: dict[int, float | None], baseline: dict[int, Curve]) -> Cell:
    """The mean over the seeds that reach their target, from `_steps_by_seed`."""
    ends = [float(curve.values[-1]) for curve in baseline.values()]
    if not np.isfinite(ends).any():
        return Cell(why=f"baseline {over_seeds(list(ends)).why}")
    return over_seeds(list(by_seed.values()), NEVER if by_seed else "not measured")


def value_at(curve: Curve, step: int) -> float | None:
    """The value logged at exactly that step; None if there is none."""
    where = np.flatnonzero(curve.steps == step)
    return float(curve.values[where[-1]]) if len(where) else None


def steps_to(curve: Curve, target: float, better: str) -> float | None:
    """The first step at which the curve, linear between its points, is as good as `target`; None if it never is. The
    earliest possible answer is the first point, because nothing is known before it. `better` is ↑ or ↓."""
    sign = 1.0 if better == "↑" else -1.0
    short_of = sign * (target - curve.values)  # 0 or less: the target is reached
    good = np.flatnonzero(short_of <= 0)
    if not len(good):
        return None
    i = int(good[0])
    if i == 0 or not np.isfinite(short_of[i - 1]):
        return float(curve.steps[i])
    share = short_of[i - 1] / (short_of[i - 1] - short_of[i])
    return float(curve.steps[i - 1] + share * (curve.steps[i] - curve.steps[i - 1]))
