"""How many steps an arm needs to reach the baseline's final value: by hand and by closed forms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from urepa.reports.comparison.as_json import as_json
from urepa.reports.comparison.by_step import NEVER, steps_to
from urepa.reports.comparison.results import Results
from urepa.reports.comparison.tables import course_tables, markdown, steps_to_baseline_table, terminal
from urepa.runs.curves import Curve

Add, Summarise = Callable[..., None], Callable[..., Results]


def curve(**values: float) -> Curve:
    """curve(s100=0.5, s200=0.3): the values by step."""
    return Curve(np.array([int(name[1:]) for name in values]), np.array(list(values.values())))


@pytest.mark.parametrize(
    ("values", "target", "better", "steps"),
    [
        ({"s100": 0.8, "s200": 0.4, "s300": 0.1}, 0.5, "↓", 175.0),  # three quarters of the way
        ({"s100": 0.2, "s200": 0.4, "s300": 0.3}, 0.3, "↑", 150.0),
        ({"s100": 0.2, "s200": 0.4}, 0.4, "↑", 200.0),  # as good, to the digit
        ({"s100": 0.2, "s200": 0.4}, 0.1, "↑", 100.0),  # from the first point on
        ({"s100": 0.2, "s200": 0.4}, 0.5, "↑", None),
        ({"s100": 0.9, "s200": 0.3, "s300": 0.7, "s400": 0.2}, 0.6, "↓", 150.0),  # the first time counts
        ({"s100": float("nan"), "s200": 0.3}, 0.4, "↓", 200.0),
    ],
)
def test_the_number_of_steps_to_a_value(
    values: dict[str, float], target: float, better: str, steps: float | None
) -> None:
    found = steps_to(curve(**values), target, better)
    assert found == (None if steps is None else pytest.approx(steps))


def test_a_curve_that_falls_as_one_over_the_step_needs_half_of_them() -> None:
    steps = np.arange(10, 2001, 10)
    slow, fast = Curve(steps, 1.0 / steps), Curve(steps, 0.5 / steps)
    assert steps_to(fast, float(slow.values[-1]), "↓") == pytest.approx(1000.0)


def study(add: Add, fast_seeds: tuple[float, float, float] = (0.30, 0.31, 0.32)) -> None:
    """Baselines rise to 0.30 in 600 steps; arms have the given values halfway, and 0.4 at the end."""
    add(values=lambda seed: {"final/knn/tap": 0.30}, course=lambda seed: {200: {"eval/knn/tap": 0.10}})
    add(
        "arm",
        {"head.depth": 1},
        values=lambda seed: {"final/knn/tap": 0.4 if fast_seeds[seed] > 0.2 else 0.25},
        course=lambda seed: {200: {"eval/knn/tap": 0.10}, 300: {"eval/knn/tap": fast_seeds[seed]}},
    )


def test_each_seed_is_compared_with_the_baseline_of_that_seed(add: Add, results: Summarise) -> None:
    study(add)
    found = results()
    (course,) = [c for c in found.courses if c.metric.key == "final/knn/tap"]
    assert course.steps == (200, 600)  # the baseline's
    expected = [200 + 100 * 0.2 / (value - 0.1) for value in (0.30, 0.31, 0.32)]
    assert course.reached["arm"].mean == pytest.approx(np.mean(expected))
    assert course.reached["arm"].sd == pytest.approx(np.std(expected, ddof=1))
    assert (course.reached["baseline"].mean, course.never) == (600.0, {"baseline": 0, "arm": 0})
    assert [cell.mean for cell in course.cells["arm"]] == pytest.approx([0.1, 0.4])
    assert steps_to_baseline_table(found).rows == (("baseline", "600 ± 0 (1×)"), ("arm", "295 ± 5 (2×)"))
    (by_step,) = course_tables(found)
    assert (by_step.headers, by_step.rows[0]) == (("arm", "200", "600"), ("baseline", "0.1000", "0.3000"))


@pytest.mark.slow
def test_seeds_that_never_reach_the_value_are_counted(add: Add, results: Summarise) -> None:
    study(add, (0.30, 0.1, 0.1))
    found = results()
    assert steps_to_baseline_table(found).rows[1][1] == "300 (2×) in 1 of 3 seeds"
    for text in (terminal(found, 140), markdown(found)):
        assert "in 1 of 3 seeds" in text
    assert as_json(found)["courses"]["final/knn/tap"]["reached"]["arm"]["never"] == 2


def test_a_seed_without_a_finite_target_is_left_out(add: Add, results: Summarise) -> None:
    """The other seeds' targets are used; if no target is finite, that is reported."""

    def ends(nan: tuple[int, ...]) -> Callable[[int], dict[str, float]]:
        return lambda seed: {"final/knn/tap": float("nan") if seed in nan else 0.30, "final/knn/head": float("nan")}

    way = {200: {"eval/knn/tap": 0.1, "eval/knn/head": 0.1}, 300: {"eval/knn/tap": 0.5, "eval/knn/head": 0.5}}
    add(values=ends((0,)), course=lambda seed: {200: way[200]})
    add("arm", {"head.depth": 1}, values=ends(()), course=lambda seed: way)
    tap, head = (c for c in results().courses)
    assert (tap.reached["arm"].mean, tap.reached["arm"].n, tap.never["arm"]) == (pytest.approx(250.0), 2, 0)
    assert head.reached["arm"].why == "baseline not finite in 3 of 3 seeds"


def test_no_seed_reaches_the_value(add: Add, results: Summarise) -> None:
    study(add, (0.1, 0.1, 0.1))
    assert steps_to_baseline_table(results()).rows[1] == ("arm", NEVER)


def test_the_value_is_reached_at_the_first_point(add: Add, results: Summarise) -> None:
    add(values=lambda seed: {"final/knn/tap": 0.30}, course=lambda seed: {200: {"eval/knn/tap": 0.10}})
    add(
        "arm", {"head.depth": 1}, values=lambda s: {"final/knn/tap": 0.4}, course=lambda s: {200: {"eval/knn/tap": 0.3}}
    )
    assert steps_to_baseline_table(results()).rows[1][1] == "≤ 200"


def test_incomparable_metrics_are_left_out(add: Add, results: Summarise) -> None:
    add(course=lambda seed: {200: {"val/token": 0.9}})
    add("arm", {"teacher.grid": [8, 8]}, course=lambda seed: {200: {"val/token": 0.2}})
    found = results()
    (course,) = [c for c in found.courses if c.metric.key == "val/token"]
    assert not course.reached["arm"].has_value
    assert steps_to_baseline_table(found).rows[1][1] == "≠"


def test_totals_are_those_of_one_lambda(add: Add, results: Summarise) -> None:
    """A total validated in the warm-up is another sum; an arm that ends in its warm-up has another one throughout."""
    way = {100: {"val/total": 0.1, "val/lambda": 0.25}, 300: {"val/total": 1.2, "val/lambda": 0.5}}
    end = {"val/total": 1.0, "val/lambda": 0.5}
    add(values=lambda seed: end, course=lambda seed: way)
    add("at_once", {"loss.warmup_steps": 0}, values=lambda seed: end, course=lambda seed: {300: way[300]})
    add("late", {"loss.warmup_steps": 3000}, values=lambda seed: end | {"val/lambda": 0.1}, course=lambda seed: way)
    found = results()
    (course,) = [c for c in found.courses if c.metric.key == "val/total"]
    assert course.steps == (300, 600)
    assert [cell.mean for cell in course.cells["at_once"]] == pytest.approx([1.2, 1.0])
    cells = {row.arm.label: row.cells["val/total"] for row in found.rows}
    assert (cells["baseline"].has_value, cells["at_once"].has_value) == (True, True)
    assert cells["late"].why == course.reached["late"].why == "not comparable: another λ at the last validation"


def test_one_point_is_not_enough(add: Add, results: Summarise) -> None:
    add()
    assert results().courses == ()
