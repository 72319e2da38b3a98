"""One sentence on how early an arm reaches the baseline's final value, in steps and in minutes of training."""

from __future__ import annotations

from urepa.reports.comparison.by_clock import unlike_machines
from urepa.reports.comparison.by_step import NEVER, Course
from urepa.reports.comparison.first_sentence import label_text, labels_in_order
from urepa.reports.comparison.number_format import minutes, percent
from urepa.reports.comparison.results import Results

DIFFUSION, FD, CIRCULAR = "val/diffusion", "final/fd/", "final/circular/"


def diffusion_race(results: Results, label: str) -> Course | None:
    """The course of the validation diffusion loss, if it is the same quantity for the arm and the baseline."""
    return next((course for course in _races(results, label) if course.metric.key == DIFFUSION), None)


def fd_race(results: Results, label: str) -> Course | None:
    """The course of the first FD whose features are not those of an arm's teacher."""
    return next((course for course in _races(results, label) if _is_fair_fd(results, course)), None)


def _races(results: Results, label: str) -> list[Course]:
    """The courses that have an answer for this arm."""
    return [course for course in results.races if course.reached[label].has_value or course.reached[label].why == NEVER]


def _is_fair_fd(results: Results, course: Course) -> bool:
    encoder = course.metric.key.removeprefix(FD)
    return encoder != course.metric.key and not any(arm.has(f"{CIRCULAR}{encoder}") for arm in results.study.arms)


def race_sentences(results: Results) -> list[str]:
    """The sentence on the result of `arm_and_race`; empty if there is none."""
    found = arm_and_race(results)
    return [] if found is None else [_sentence(results, *found)]


def arm_and_race(results: Results) -> tuple[str, Course] | None:
    """The first arm, in the order of the verdict, that has an FD, and the course of that FD; if there is none, the
    first that has a diffusion loss."""
    found = ((label, race(results, label)) for race in (fd_race, diffusion_race) for label in labels_in_order(results))
    return next(((label, course) for label, course in found if course is not None), None)


def _sentence(results: Results, label: str, course: Course) -> str:
    """`depth=1 reaches baseline's final FD(pixels) after 640 of 1,000 steps (64 %), 7.1 of 9.8 minutes of training
    (72 %)`. Minutes are left out if the machines differ."""
    baseline, clock = results.study.baseline.label, results.clock
    cell, never, total = course.reached[label], course.never[label], course.steps[-1]
    what = f"{label_text(baseline)}'s final {course.metric.label}"
    if not cell.has_value:
        return f"{label_text(label)} does not reach {what}{f' in any of {never} seeds' * (never > 1)}"
    where = f" in {cell.n} of {cell.n + never} seeds" if never else ""
    when = "within" if cell.mean <= course.steps[0] else "after"
    share = percent(cell.mean / total)
    text = f"{label_text(label)} reaches {what}{where} {when} {cell.mean:,.0f} of {total:,} steps{share}"
    took, whole = clock.reached[course.metric.key][label], clock.whole[baseline]
    if not took.has_value or not whole.has_value or unlike_machines(results.study):
        return text
    text += f", {minutes(took.mean)} of {minutes(whole.mean)} minutes of training{percent(took.mean / whole.mean)}"
    here, there = clock.with_cache(label, took), clock.with_cache(baseline, whole)
    if here is None or there is None or not clock.caches[label].mean:
        return text
    return f"{text}, and {minutes(here)} of {minutes(there)} with making the teacher's cache{percent(here / there)}"
