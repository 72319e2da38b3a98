"""Minutes of training: of a run at each step, of an arm in total, and until an arm reaches the baseline's final value.

The trainer logs `images_per_s` between two logging steps, over the time that the loop took for them. That time includes
waiting for data, validations and checkpoints. It excludes evaluations, building the run, and the pauses between two
processes of a run. So the training time is computed from these rates and not from the rows' time stamps.

Shapes: N logged steps, P points of a curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from urepa.reports.comparison.arms import Arm, ComparedArms
from urepa.reports.comparison.by_step import Course
from urepa.reports.comparison.metric_columns import RATE
from urepa.reports.comparison.read_runs import Run
from urepa.reports.comparison.seed_cells import Cell, over_seeds
from urepa.runs.curves import Curve

NO_RATES = "its rows have no images_per_s"
NOT_RECORDED = "not recorded"
INCLUDED = (
    "Minutes of training are those of the training loop, from the logged images_per_s: waiting for data, validations "
    "and checkpoints are in them; evaluations, the start of a process, pauses between processes and steps that a "
    "resume repeated are not."
)


@dataclass(frozen=True)
class ByClock:
    """Times in minutes of training, by the arm's label. `whole`: the time of all steps. `reached`: by metric, the time
    until the arm is as good as the baseline of the same seed at its end. `caches`: the time to build the teacher's
    cache, once for all runs that use it. `missing`: the reason why an arm has no times."""

    whole: dict[str, Cell]
    reached: dict[str, dict[str, Cell]]
    caches: dict[str, Cell]
    missing: dict[str, str]

    @property
    def is_known(self) -> bool:
        """Whether any arm has times."""
        return any(cell.has_value for cell in self.whole.values())

    def with_cache(self, label: str, cell: Cell) -> float | None:
        """The mean of a cell of this arm's minutes plus its teacher's cache; None if either is unknown."""
        cache = self.caches[label]
        return cell.mean + cache.mean if cell.has_value and cache.has_value else None


def clock_of(run: Run) -> Curve | None:
    """Seconds of training [N+1] at step 0 and after each logged step; None if there is a reason in `why_no_clock`. The
    rate is taken as constant between logging steps. After a resume, the steps between the last logging step and the
    checkpoint have no rate of their own and use the next one."""
    if why_no_clock(run):
        return None
    rate = run.curves[RATE]
    images_N = np.diff(rate.steps, prepend=0) * int(run.config["trainer.batch_size"])
    seconds_N = np.cumsum(images_N / rate.values)
    return Curve(np.append(0, rate.steps), np.append(0.0, seconds_N))


def why_no_clock(run: Run) -> str:
    """The reason why the times of the run's steps are not known; "" if they are."""
    rate = run.curves.get(RATE)
    if rate is None:
        return NO_RATES
    if not (np.isfinite(rate.values) & (rate.values > 0)).all():
        return "some of its images_per_s are not positive numbers"
    if rate.steps[0] > 1:  # the first step is always logged, so rows were lost
        return f"its metrics begin at step {rate.steps[0]}, the time before is not known"
    if rate.steps[-1] < run.last_step:
        return f"its images_per_s end at step {rate.steps[-1]} of {run.last_step}"
    return ""


def minutes_at(clock: Curve, steps_P: Any) -> NDArray[np.float64]:
    """Minutes of training [P] after these steps, linear between logged ones."""
    return np.asarray(np.interp(steps_P, clock.steps, clock.values) / 60)


def arm_minutes(arm: Arm, steps_P: NDArray[Any]) -> NDArray[np.float64]:
    """The mean over seeds of the minutes [P] after these steps. Every seed must have a clock."""
    clocks = [clock for run in arm.runs.values() if (clock := clock_of(run)) is not None]
    assert len(clocks) == len(arm.runs), f"{arm.label} has no clock"
    return np.asarray(np.mean([minutes_at(clock, steps_P) for clock in clocks], axis=0))


def by_clock(study: ComparedArms, courses: tuple[Course, ...]) -> ByClock:
    """The times of all arms. An arm has times only if all of its seeds have them: a mean over fewer seeds would not
    match the mean of its steps."""
    missing = {arm.label: why for arm in study.arms if (why := _missing(arm))}
    whole = {
        arm.label: Cell(why=missing[arm.label]) if arm.label in missing else over_seeds([_all(r) for r in _runs(arm)])
        for arm in study.arms
    }
    reached = {
        course.metric.key: {arm.label: _minutes_to_reach(course, arm, missing) for arm in study.arms}
        for course in courses
        if course.reached
    }
    caches = {arm.label: over_seeds([cache_minutes(run) for run in _runs(arm)], NOT_RECORDED) for arm in study.arms}
    return ByClock(whole, reached, caches, missing)


def _missing(arm: Arm) -> str:
    return next((f"seed {seed}: {why}" for seed, run in arm.runs.items() if (why := why_no_clock(run))), "")


def _runs(arm: Arm) -> list[Run]:
    return list(arm.runs.values())


def _all(run: Run) -> float | None:
    clock = clock_of(run)
    return None if clock is None else float(clock.values[-1] / 60)


def _minutes_to_reach(course: Course, arm: Arm, missing: dict[str, str]) -> Cell:
    """The minutes until each seed reaches its target, over the seeds that reach it."""
    cell = course.reached[arm.label]
    if not cell.has_value or arm.label in missing:
        return Cell(why=cell.why or missing[arm.label])
    return over_seeds(
        [
            float(minutes_at(clock, step))
            for seed, step in course.by_seed[arm.label].items()
            if step is not None and (clock := clock_of(arm.runs[seed])) is not None
        ]
    )


def cache_minutes(run: Run) -> float | None:
    """Minutes spent on computing the teacher's tokens: 0 for a run that read none, None if they are not recorded."""
    seconds = run.facts.get("seconds", {}).get("teacher_cache")
    return None if seconds is None else seconds / 60


def unlike_machines(study: ComparedArms) -> list[str]:
    """For each property in which the runs' machines differ, a clause that names it."""
    runs = [run for arm in study.arms for run in arm.runs.values()]
    there = {
        name: sorted({str(run.facts[name]) for run in runs if name in run.facts})
        for name in ("device", "processes", "threads")
    }
    return [f"runs differ in {name} ({', '.join(found)})" for name, found in there.items() if len(found) > 1]
