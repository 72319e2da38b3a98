"""Minutes of training: compared with closed forms, and left out where they are not known."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from urepa.reports.comparison.as_csv import as_csv
from urepa.reports.comparison.as_json import as_json
from urepa.reports.comparison.by_clock import clock_of, minutes_at, why_no_clock
from urepa.reports.comparison.by_step import NEVER
from urepa.reports.comparison.draw_panels import Panel, draw
from urepa.reports.comparison.figures import panels
from urepa.reports.comparison.findings import findings
from urepa.reports.comparison.metric_columns import RATE
from urepa.reports.comparison.page import page
from urepa.reports.comparison.read_runs import Run
from urepa.reports.comparison.results import Results
from urepa.reports.comparison.steps_saved import race_sentences
from urepa.reports.comparison.tables import clock_table, markdown, terminal
from urepa.runs.curves import Curve

Add, Summarise = Callable[..., None], Callable[..., Results]
FD = "final/fd/cnn"
BATCH = 32
STEPS = 600
SPEED = {"trainer.batch_size": BATCH}


def run_of(steps: list[int], rates: list[float], last: int | None = None) -> Run:
    """A run with batches of 32 and these rates, whose other metrics end at step `last`."""
    rate = Curve(np.array(steps), np.array(rates))
    other = Curve(np.array([1, steps[-1] if last is None else last]), np.array([1.0, 0.5]))
    return Run("id", "name", {"trainer.batch_size": "32"}, {}, "finished", {}, {RATE: rate, "val/diffusion": other})


def test_the_clock_is_the_sum_over_stretches_of_steps() -> None:
    """32 images per step: step 1 took 32 s, then 99 steps 1 s each and 200 steps 2 s each."""
    clock = clock_of(run_of([1, 100, 300], [1.0, 32.0, 16.0]))
    assert clock is not None
    assert clock.steps.tolist() == [0, 1, 100, 300]
    np.testing.assert_allclose(clock.values, [0.0, 32.0, 131.0, 531.0], rtol=1e-12)
    np.testing.assert_allclose(minutes_at(clock, [0, 50, 200, 300]), np.array([0, 81, 331, 531]) / 60, rtol=1e-12)


@pytest.mark.parametrize(
    ("steps", "rates", "last", "why"),
    [
        ([1, 100], [1.0, float("nan")], None, "some of its images_per_s are not positive numbers"),
        ([1, 100], [1.0, 0.0], None, "some of its images_per_s are not positive numbers"),
        ([50, 100], [1.0, 1.0], None, "its metrics begin at step 50, the time before is not known"),
        ([1, 100], [1.0, 1.0], 200, "its images_per_s end at step 100 of 200"),
    ],
)
def test_incomplete_times_give_no_minutes(steps: list[int], rates: list[float], last: int | None, why: str) -> None:
    run = run_of(steps, rates, last)
    assert why_no_clock(run) == why
    assert clock_of(run) is None


def study(
    add: Add,
    arm: Callable[[int], float] = lambda seed: 100.0,
    rates: tuple[float | None, float | None] = (40.0, 32.0),
    facts: dict[str, Any] | None = None,
    changes: dict[str, Any] | None = None,
    extra: dict[str, float] | None = None,
) -> None:
    """FDs that fall from 200 at step 200: the baseline's to 100 at step 600, an arm's to its own value at step 400 and
    later. The baseline's final diffusion loss is not reached earlier. Minutes per step: 32 / rate / 60."""
    own, arms = rates
    add(
        changes=SPEED,
        values=lambda seed: {FD: 100.0, "val/diffusion": 0.5} | (extra or {}),
        course=lambda seed: {200: {"eval/fd/cnn": 200.0, "val/diffusion": 0.7}},
        images_per_s=own,
    )
    add(
        "arm",
        SPEED | {"head.depth": 1} | (changes or {}),
        values=lambda seed: {FD: arm(seed) - 10.0, "val/diffusion": 0.5} | (extra or {}),
        course=lambda seed: {
            200: {"eval/fd/cnn": 200.0, "val/diffusion": 0.7},
            400: {"eval/fd/cnn": arm(seed), "val/diffusion": 0.6},
        },
        images_per_s=arms,
        **({} if facts is None else {"summary": facts}),
    )


def of(steps: float, rate: float) -> float:
    """The minutes of an arm."""
    return steps * BATCH / rate / 60


def panels_of(results: Results) -> dict[str, Panel]:
    return {panel.name: panel for panel in panels(results) if panel.section == "clock"}


@pytest.mark.slow
def test_minutes_to_the_baselines_end(add: Add, results: Summarise) -> None:
    """Seeds that reach it at different steps: FD 100, 90 and 80 at step 400, from 200 at step 200."""
    study(add, lambda seed: 100.0 - 10 * seed)
    found = results()
    steps = 200 + 200 * 100 / np.array([100.0, 110.0, 120.0])
    cell = found.clock.reached[FD]["arm"]
    assert cell.mean == pytest.approx(np.mean(of(steps, 32.0)))
    assert cell.sd == pytest.approx(np.std(of(steps, 32.0), ddof=1))
    assert found.clock.whole["arm"].mean == pytest.approx(of(STEPS, 32.0))
    assert found.clock.whole["baseline"].mean == pytest.approx(of(STEPS, 40.0))
    assert found.clock.reached[FD]["baseline"].mean == pytest.approx(of(STEPS, 40.0))
    table = clock_table(found)
    assert table.headers == ("arm", "all steps", "diffusion loss\u00a0↓", "FD(cnn)\u00a0↓")
    assert table.rows[0] == ("baseline", "8.0", "8.0 (100 %)", "8.0 (100 %)")
    assert table.rows[1] == ("arm", "10.0", "10.0 (125 %)", "6.38 ± 0.28 (80 %)")
    for text in (terminal(found, 160), markdown(found)):
        assert "6.38 ± 0.28 (80 %)" in text
    assert as_json(found)["clock"]["reached"][FD]["arm"]["mean"] == cell.mean


def test_the_csv_holds_what_a_page_may_quote(add: Add, results: Summarise) -> None:
    study(add)
    found = results()
    baseline, arm = csv.DictReader(io.StringIO(as_csv(found)))
    assert (baseline["steps"], arm["steps"]) == ("600", "600")
    assert float(arm[f"{FD} steps to baseline"]) == pytest.approx(400.0)
    assert float(arm[f"{FD} minutes to baseline"]) == found.clock.reached[FD]["arm"].mean == pytest.approx(of(400, 32))
    assert float(baseline["minutes"]) == found.clock.whole["baseline"].mean == pytest.approx(of(600, 40))
    assert (arm[f"{FD} to baseline n"], arm[f"{FD} to baseline never"], arm["cache minutes"]) == ("3", "0", "")


def test_time_outside_training_does_not_count(add: Add, results: Summarise, tmp_path: Path) -> None:
    """An hour for an evaluation, or between two processes of a run: it shows in the rows' times, not in the rates."""
    study(add)
    before = results().clock
    for file in (tmp_path / "outputs").rglob("metrics.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        late = [row | {"time": row["time"] + 3_600_000 * (row["step"] > 200)} for row in rows]
        assert late != rows
        file.write_text("".join(json.dumps(row) + "\n" for row in late))
    assert results().clock == before


def test_seeds_that_never_reach_the_target_are_counted(add: Add, results: Summarise) -> None:
    """FD ends at 290 in two seeds; in the third the arm reaches the target at step 400."""
    study(add, lambda seed: 100.0 if seed == 0 else 300.0)
    found = results()
    assert clock_table(found).rows[1][3] == "6.7 (83 %) in 1 of 3 seeds"
    assert found.clock.reached[FD]["arm"].n == 1
    (sentence,) = race_sentences(found)
    assert sentence == (
        "arm reaches baseline's final FD(cnn) in 1 of 3 seeds after 400 of 600 steps (67 %), 6.7 of 8.0 minutes of "
        "training (83 %)"
    )
    _, arm = csv.DictReader(io.StringIO(as_csv(found)))
    assert (arm[f"{FD} to baseline n"], arm[f"{FD} to baseline never"]) == ("1", "2")


@pytest.mark.slow
def test_no_seed_reaches_the_target(add: Add, results: Summarise) -> None:
    study(add, lambda seed: 300.0)
    found = results()
    assert clock_table(found).rows[1][3] == NEVER
    assert race_sentences(found) == ["arm does not reach baseline's final FD(cnn) in any of 3 seeds"]
    assert draw(panels_of(found)["at_a_glance"]).png.startswith(b"\x89PNG")


def test_the_target_is_reached_at_the_first_point(add: Add, results: Summarise) -> None:
    add(changes=SPEED, values=lambda seed: {FD: 250.0}, course=lambda seed: {200: {"eval/fd/cnn": 300.0}})
    arm = {200: {"eval/fd/cnn": 200.0}}
    add("arm", SPEED | {"head.depth": 1}, values=lambda seed: {FD: 90.0}, course=lambda seed: arm)
    found = results()
    assert clock_table(found).rows[1][2] == "≤ 2.1 (33 %)"
    assert race_sentences(found)[0].startswith("arm reaches baseline's final FD(cnn) within 200 of 600 steps (33 %)")


# --- the sentence -------------------------------------------------------------------------------------------


def test_one_sentence_on_the_first_arm_of_the_verdict(add: Add, results: Summarise) -> None:
    study(add)
    sentence = (
        "arm reaches baseline's final FD(cnn) after 400 of 600 steps (67 %), 6.7 of 8.0 minutes of training (83 %)"
    )
    found = results()
    assert race_sentences(found) == [sentence]
    assert findings(found)[-1] == sentence
    assert as_json(found)["findings"][-1] == sentence


def test_fd_in_a_teachers_own_features_is_not_used(add: Add, results: Summarise) -> None:
    """The diffusion loss is used instead."""
    study(add, extra={"final/circular/cnn": 1.0})
    (sentence,) = race_sentences(results())
    assert sentence.startswith(
        "arm reaches baseline's final diffusion loss after 600 of 600 steps (100 %), 10.0 of 8.0"
    )
    assert "at_a_glance" not in panels_of(results())


def test_minutes_of_different_machines_are_not_compared(add: Add, results: Summarise) -> None:
    study(add, facts={"device": "cuda:0"})
    found = results()
    assert race_sentences(found) == ["arm reaches baseline's final FD(cnn) after 400 of 600 steps (67 %)"]
    assert "Runs differ in device (cpu, cuda:0): their minutes cannot be compared." in page(found, [], [])


def test_minutes_include_the_teachers_cache(add: Add, results: Summarise) -> None:
    """Three minutes for the arm's cache, none for a baseline without a teacher's tokens."""
    add(
        changes=SPEED,
        values=lambda seed: {FD: 100.0},
        course=lambda seed: {200: {"eval/fd/cnn": 200.0}},
        images_per_s=40.0,
        summary={"seconds": {"training": 1.0, "teacher_cache": 0.0}},
    )
    add(
        "arm",
        SPEED | {"head.depth": 1},
        values=lambda seed: {FD: 90.0},
        course=lambda seed: {200: {"eval/fd/cnn": 200.0}, 400: {"eval/fd/cnn": 100.0}},
        images_per_s=32.0,
        summary={"seconds": {"training": 1.0, "teacher_cache": 180.0}},
    )
    found = results()
    assert clock_table(found).headers[2] == "teacher's cache"
    assert [row[2] for row in clock_table(found).rows] == ["0", "3.0"]
    assert clock_table(found).rows[1][3] == "6.7 (83 %); 9.7 (121 %) with the cache"
    assert race_sentences(found)[0].endswith("(83 %), and 9.7 of 8.0 with making the teacher's cache (121 %)")
    assert [row["cache minutes"] for row in csv.DictReader(io.StringIO(as_csv(found)))] == ["0.0", "3.0"]


# --- where times are not known ------------------------------------------------------------------------------


def test_an_arm_of_old_runs_has_steps_alone(add: Add, results: Summarise) -> None:
    study(add, rates=(40.0, None))
    found = results()
    assert clock_table(found).rows[1] == ("arm", "–", "–", "–")
    assert clock_table(found).rows[0][1] == "8.0"
    assert [line[1] for line in panels_of(found)["clock_final_fd_cnn"].draw.keywords["lines"]] == ["baseline"]  # type: ignore[attr-defined]
    assert "at_a_glance" not in panels_of(found)
    assert "No minutes of arm: seed 0: its rows have no images_per_s." in page(found, [], [])
    assert race_sentences(found) == ["arm reaches baseline's final FD(cnn) after 400 of 600 steps (67 %)"]
    _, arm = csv.DictReader(io.StringIO(as_csv(found)))
    assert (arm["minutes"], arm[f"{FD} minutes to baseline"]) == ("", "")
    assert float(arm[f"{FD} steps to baseline"]) == 400.0


def test_a_study_of_old_runs_has_no_clock(add: Add, results: Summarise) -> None:
    study(add, rates=(None, None))
    found = results()
    assert panels_of(found) == {}
    assert "minutes of training until" not in terminal(found, 140)
    assert "its rows have no images_per_s" in page(found, [], [])


def test_an_arm_with_a_seed_without_times_has_no_minutes(add: Add, results: Summarise) -> None:
    """A mean over the other seeds would not match the mean steps."""
    for seed in range(3):
        add(
            changes=SPEED,
            seeds=(seed,),
            course=lambda seed: {200: {"val/diffusion": 0.9}},
            images_per_s=None if seed == 1 else 40.0,
        )
    clock = results().clock
    assert not clock.whole["baseline"].has_value
    assert clock.missing == {"baseline": "seed 1: its rows have no images_per_s"}


# --- figures ------------------------------------------------------------------------------------------------


def test_curves_over_minutes(add: Add, results: Summarise) -> None:
    """Each seed over its own minutes; their mean over the mean of the minutes."""
    for seed, rate in enumerate((20.0, 40.0)):
        add(
            changes=SPEED,
            seeds=(seed,),
            values=lambda seed: {FD: 100.0 + 10 * seed},
            course=lambda seed: {200: {"eval/fd/cnn": 200.0 + 10 * seed, "val/token": 0.9}},
            images_per_s=rate,
        )
    found = panels_of(results())
    assert set(found) == {"clock_final_fd_cnn"}, "not of losses of alignment"
    ((_, label, seeds, mean),) = found["clock_final_fd_cnn"].draw.keywords["lines"]  # type: ignore[attr-defined]
    assert label == "baseline"
    for (minutes, values), rate, more in zip(seeds, (20.0, 40.0), (0, 10), strict=True):
        np.testing.assert_allclose(minutes, [of(200, rate), of(600, rate)])
        np.testing.assert_allclose(values, [200 + more, 100 + more])
    np.testing.assert_allclose(mean[0], [(of(s, 20.0) + of(s, 40.0)) / 2 for s in (200, 600)])
    np.testing.assert_allclose(mean[1], [205.0, 105.0])


@pytest.mark.slow
def test_two_metrics_by_step_and_by_the_clock_at_a_glance(add: Add, results: Summarise) -> None:
    study(add, lambda seed: 100.0 - 10 * seed)
    panel = panels_of(results())["at_a_glance"]
    quarters = panel.draw.keywords["quarters"]  # type: ignore[attr-defined]
    assert [quarter.xlabel for quarter in quarters] == ["step", "minutes of training"] * 2
    assert [quarter.title for quarter in quarters] == ["validation diffusion loss\u00a0↓"] * 2 + ["FD(cnn)\u00a0↓"] * 2
    by_step, by_clock = quarters[2:]
    (first, baseline), (second, arm) = by_clock.lines
    assert (first, second, by_clock.end) == ("baseline", "arm", 100.0)
    np.testing.assert_allclose(baseline.x_P, [of(200, 40.0), of(600, 40.0)])
    np.testing.assert_allclose(arm.x_P, [of(step, 32.0) for step in (200, 400, 600)])
    np.testing.assert_allclose([arm.low_P, arm.mean_P, arm.high_P], [[200, 80, 70], [200, 90, 80], [200, 100, 90]])
    assert by_step.reached == pytest.approx(np.mean(200 + 200 * 100 / np.array([100.0, 110.0, 120.0])))
    assert by_clock.caption == "6.4 of 8.0 (80 %)"
    drawn = draw(panel)
    assert drawn.png.startswith(b"\x89PNG")
    assert "figure class" not in drawn.svg
    assert '<figure id="figure-at_a_glance" class="wide"' in page(results(), [drawn], [])


def test_the_first_arm_of_the_verdict_that_has_an_fd(add: Add, results: Summarise) -> None:
    """Not an arm without an FD, whose effects the verdict names first."""
    study(add)
    add("earlier", SPEED | {"head.depth": 3}, values=lambda seed: {"val/x0_error": 0.1 + 0.001 * seed})
    found = results(order=("baseline", "earlier", "arm"))
    assert [row.arm.label for row in found.rows] == ["baseline", "earlier", "arm"]
    assert race_sentences(found)[0].startswith("arm reaches baseline's final FD(cnn) after 400 of 600 steps")
    assert "at_a_glance" in panels_of(found)
