"""The numbers of a study with known values."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import isfinite, isnan
from pathlib import Path

import numpy as np
import pytest
from made_up import without_alignment
from scipy import stats

from urepa.compare import mixed_code_note, notices
from urepa.reports.comparison.expected_values import reported_rows
from urepa.reports.comparison.findings import ema_lag_sentences, findings, other_remarks, overfitting_sentences
from urepa.reports.comparison.page import page
from urepa.reports.comparison.results import PAIRED, ArmRow, Results, reference_rows
from urepa.reports.comparison.statistics import holm
from urepa.reports.comparison.tables import differences_table, footnotes, steps_to_baseline_table

Add, Summarise = Callable[..., None], Callable[..., Results]
BASE, ARM = {0: 0.30, 1: 0.50, 2: 0.40}, {0: 0.31, 1: 0.53, 2: 0.42}


def rows(results: Results) -> dict[str, ArmRow]:
    return {row.arm.label: row for row in results.rows}


def test_paired_differences(add: Add, results: Summarise) -> None:
    add(values=lambda seed: {"val/x0_error": BASE[seed]})
    add("arm", {"head.depth": 1}, values=lambda seed: {"val/x0_error": ARM[seed]})
    row = rows(results())["arm"]
    cell, found = row.cells["val/x0_error"], row.differences["val/x0_error"]
    assert (cell.mean, cell.sd, cell.n) == (pytest.approx(0.42), pytest.approx(0.11), 3)
    test = stats.ttest_rel(list(ARM.values()), list(BASE.values()))
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert (found.mean, found.n, found.how, found.mark) == (pytest.approx(0.02), 3, PAIRED, "○")


def test_only_shared_seeds_are_pairs(add: Add, results: Summarise) -> None:
    add(values=lambda seed: {"val/x0_error": BASE[seed]})
    add("arm", {"head.depth": 1}, seeds=(1, 2, 3), values=lambda seed: {"val/x0_error": (ARM | {3: 9.0})[seed]})
    found = rows(results())["arm"].differences["val/x0_error"]
    assert (found.n, found.mean) == (2, pytest.approx(0.025))


def test_one_shared_seed_is_no_pair_where_each_has_more(add: Add, results: Summarise) -> None:
    add(values=lambda seed: {"val/x0_error": BASE[seed]})
    own = {2: 0.42, 3: 0.5, 4: 0.44}
    add("arm", {"head.depth": 1}, seeds=(2, 3, 4), values=lambda seed: {"val/x0_error": own[seed]})
    add("alone", {"head.depth": 3}, seeds=(2,), values=lambda seed: {"val/x0_error": own[seed]})
    by_label = rows(results())
    found = by_label["arm"].differences["val/x0_error"]
    expected = stats.ttest_ind(list(own.values()), list(BASE.values()), equal_var=False)
    assert (found.p, found.n, found.how) == (pytest.approx(expected.pvalue), 3, "other seeds, not paired")
    assert by_label["arm"].notes == ("not paired: it shares one seed alone with the baseline",)
    alone = by_label["alone"].differences["val/x0_error"]
    assert (alone.mean, alone.how, by_label["alone"].notes) == (pytest.approx(0.02), PAIRED, ())
    said = [line for line in findings(results()) if line.startswith("alone: one seed: no interval (")]
    assert len(said) == 1
    assert "x0 error" in said[0], "beside arms that are tested"


def test_other_data_is_compared_without_pairs_and_says_so(add: Add, results: Summarise) -> None:
    add(values=lambda seed: {"val/x0_error": BASE[seed]})
    add("half", {"data.limit": 4000}, values=lambda seed: {"val/x0_error": ARM[seed]})
    add("other", {"head.depth": 1}, seeds=(7, 8), values=lambda seed: {"val/x0_error": ARM[seed - 7]})
    by_label = rows(results())
    found = by_label["half"].differences["val/x0_error"]
    welch = stats.ttest_ind(list(ARM.values()), list(BASE.values()), equal_var=False)
    assert (found.p, found.how) == (pytest.approx(welch.pvalue), "same seed, not paired")
    assert by_label["half"].notes[0].startswith("same seed, not paired: data.limit differs")
    assert by_label["other"].differences["val/x0_error"].how == "other seeds, not paired"


def test_holm_runs_over_the_arms_that_were_compared(add: Add, results: Summarise) -> None:
    add(values=lambda seed: {"val/diffusion": BASE[seed]})
    for i, spread in enumerate((0.001, 0.004, 0.05)):
        add(
            f"arm{i}",
            {"head.depth": 3 + i},
            values=lambda seed, s=spread: {"val/diffusion": BASE[seed] + 0.05 + s * seed},
        )
    add("eps", {"objective._target_": "urepa.method.objectives.ddpm_epsilon.DDPMEpsilon"})
    by_label = rows(results())
    assert by_label["eps"].cells["val/diffusion"].why == "not comparable: another objective"
    assert "val/diffusion" not in by_label["eps"].differences
    found = [by_label[f"arm{i}"].differences["val/diffusion"] for i in range(3)]
    np.testing.assert_allclose([d.p_holm for d in found], holm(np.array([d.p for d in found])))
    assert [d.mark for d in found] == ["●", "●", "○"]


@pytest.mark.slow
def test_the_mark_of_a_difference_without_holms_correction(add: Add, results: Summarise) -> None:
    """The interval excludes 0 alone, but not as one of many."""
    add(values=lambda seed: {"val/diffusion": BASE[seed]})
    add("clear", {"head.depth": 3}, values=lambda seed: {"val/diffusion": BASE[seed] + 0.05 + 0.012 * seed})
    for i in range(6):
        add(
            f"null{i}",
            {"head.depth": 4 + i},
            values=lambda seed: {"val/diffusion": BASE[seed] + (-0.01, 0.01, 0.0)[seed]},
        )
    found = rows(results())["clear"].differences["val/diffusion"]
    assert found.p < 0.05 < found.p_holm
    assert found.mark == "◐"
    assert "before Holm only: clear" in next(line for line in findings(results()) if line.startswith("Diffusion"))


def test_metrics_without_a_difference_share_a_sentence(add: Add, results: Summarise) -> None:
    add()
    add("arm", {"head.depth": 3}, values=lambda seed: {"val/token": 0.4 + 0.001 * seed})
    said = findings(results())
    first = next(line for line in said if line.startswith("Token loss"))
    assert first.startswith("Token loss: differs: arm (−")
    (rest,) = [line for line in said if line.startswith("No difference beyond noise in the one comparison: ")]
    assert "diffusion loss" in rest
    assert "token loss" not in rest
    tested = sum(isfinite(d.p) for d in rows(results())["arm"].differences.values())
    assert said[-1].startswith(f"{tested} metrics were looked at")


def test_one_seed_has_no_interval(add: Add, results: Summarise) -> None:
    add(seeds=(0,))
    add("arm", {"head.depth": 1}, seeds=(0,))
    found = rows(results())["arm"].differences["val/token"]
    assert isnan(found.low)
    assert isnan(found.p)
    assert (found.why, found.mark) == ("one seed: no interval", "")
    said = [line for line in findings(results()) if "one seed" in line.lower()]
    assert len(said) == 1, "once, not for each metric"
    assert said[0].startswith("One seed: no interval (")
    assert "token loss" in said[0]


def test_metrics_of_another_teacher_are_not_compared(add: Add, results: Summarise) -> None:
    """The token cosine with it, but not the result of a k-NN on the tap; its own score names its teacher."""
    values = {"final/token_cosine": 0.4, "final/knn/tap": 0.3, "final/knn/teacher": 0.8}
    add(values=lambda seed: values)
    add("small", {"head.depth": 1}, values=lambda seed: values)
    assert list(reference_rows(results())) == ["the teacher's tokens"]
    add("fine", {"teacher.grid": [8, 8]}, values=lambda seed: values | {"final/knn/teacher": 0.9})
    found = results()
    fine = rows(found)["fine"]
    assert fine.cells["final/token_cosine"].why == "not comparable: another teacher.grid"
    assert "final/token_cosine" not in fine.differences
    assert "final/knn/tap" in fine.differences
    (label,) = reference_rows(found)
    assert label == "the teacher's tokens (of baseline's teacher)"
    assert reference_rows(found)[label]["final/knn/tap"].mean == pytest.approx(0.8)


def test_metrics_that_the_baseline_lacks_are_compared_with_the_first_arm_that_has_them(
    add: Add, results: Summarise, tmp_path: Path
) -> None:
    without_alignment(add, tmp_path)
    found = results(baseline="none")
    by_label = rows(found)
    assert by_label["none"].cells["val/token"].why == "not measured"
    assert by_label["a"].cells["val/token"].has_value
    assert by_label["b"].cells["val/token"].has_value
    assert by_label["c"].cells["val/token"].why == "not comparable: another teacher.grid than a"
    assert not [label for label, row in by_label.items() if "val/token" in row.differences]
    assert "val/x0_error" in by_label["c"].differences
    assert by_label["b"].cells["val/total"].why.startswith("not comparable: another loss")
    (course,) = [c for c in found.courses if c.metric.key == "val/token"]
    assert course.cells["a"][0].mean == pytest.approx(0.6)
    assert (course.reached, course in found.races) == ({}, False)
    assert "val/token" not in str(steps_to_baseline_table(found).headers)
    assert any(note.startswith("≠ c: another teacher.grid than a (token loss") for note in footnotes(found))


def test_a_run_that_diverged_is_not_averaged(add: Add, results: Summarise) -> None:
    add()
    add("arm", {"head.depth": 1}, values=lambda seed: {"val/token": float("nan") if seed else 0.5})
    row = rows(results())["arm"]
    assert row.cells["val/token"].why == "not finite in 2 of 3 seeds"
    assert "val/token" not in row.differences
    assert "val/diffusion" in row.differences


def test_a_diverged_baseline_is_reported(add: Add, results: Summarise) -> None:
    add(values=lambda seed: {"val/token": 0.5 if seed else float("nan")})
    add("arm", {"head.depth": 1})
    found = results()
    assert "val/token" not in rows(found)["arm"].differences
    table = differences_table(found)
    cells = dict(zip(table.headers, table.rows[0], strict=True))
    assert cells["token loss\u00a0↓"] == "baseline not finite in 1 of 3 seeds"
    assert "Nothing is compared with the baseline not finite in 1 of 3 seeds (token loss)" in findings(found)
    assert "baseline not finite in 1 of 3 seeds" in page(found, [], [])


@pytest.mark.slow
def test_the_bootstrap_is_shown_from_twenty_seeds_on(add: Add, results: Summarise) -> None:
    add(seeds=tuple(range(20)), points=2)
    add(
        "arm",
        {"head.depth": 1},
        seeds=tuple(range(20)),
        points=2,
        values=lambda seed: {"val/token": 0.5 + 0.01 * (seed % 7)},
    )
    assert rows(results())["arm"].differences["val/token"].bootstrap is not None


def test_costs(add: Add, results: Summarise) -> None:
    add(seeds=(0, 1), summary={"device": "cuda:0", "processes": 4})
    costs = results().rows[0].costs
    assert {name: cell.mean for name, cell in costs.items()} == {
        "trainable, M": 0.5,
        "s/step": 2.0,
        "GPU-hours": pytest.approx(2.0 * 600 * 4 / 3600),
        "peak memory, GB": 3.0,
    }


def test_the_documents_rules_of_overfitting(add: Add, results: Summarise) -> None:
    """The description's rule: validation well above training. The made-up training curves end at the validation
    values."""
    add()
    assert overfitting_sentences(results()) == [
        "none of the three signs of overfitting: validation is within 10 % of training in every arm"
    ]
    add("arm", {"head.depth": 1})
    study = results()
    arm = study.rows[1].arm
    for run in arm.runs.values():
        run.curves["val/token"].values[-1] *= 1.5
    (remark,) = overfitting_sentences(study)
    assert remark.startswith("val/token is well above train/token: the head overfits: arm (+")


LAG = (
    "the EMA weights, which validation and evaluations use, still hold 67 % of the initial weights "
    "(trainer.ema_decay=0.99 over 40 updates): train longer, lower trainer.ema_decay, or set trainer.ema_warmup=true"
)
NOT_JUDGED = "not judged, as validation is of EMA weights that still hold more than 5 % of the initial weights"


def overfitted(study: Results) -> Results:
    """A study whose token loss is far above the training's in every arm."""
    for row in study.rows:
        for run in row.arm.runs.values():
            run.curves["val/token"].values[-1] *= 1.5
    return study


def test_a_lag_of_the_average_is_no_overfitting(add: Add, results: Summarise) -> None:
    """After 40 steps an average with decay 0.99 contains 0.99^40 = 67 % of the initial weights."""
    add(changes={"trainer.max_steps": 40})
    study = overfitted(results())
    assert ema_lag_sentences(study) == [f"baseline: {LAG}"]
    assert overfitting_sentences(study) == [f"{NOT_JUDGED}: baseline"]
    assert notices(study)[-1] == f"baseline: {LAG}."


def test_arms_whose_average_does_not_lag_are_judged_beside_those_whose_does(add: Add, results: Summarise) -> None:
    add(changes={"trainer.max_steps": 40, "trainer.ema_warmup": True})
    add("slow", {"trainer.max_steps": 40})
    study = results()
    assert ema_lag_sentences(study) == [f"slow: {LAG}"]
    assert overfitting_sentences(study) == [
        "none of the three signs of overfitting: validation is within 10 % of training in every other arm",
        f"{NOT_JUDGED}: slow",
    ]
    first, second = overfitting_sentences(overfitted(study))
    assert first.startswith("val/token is well above train/token: the head overfits: baseline (+")
    assert "slow" not in first
    assert second == f"{NOT_JUDGED}: slow"


def test_skipped_steps_do_not_count_in_an_average(add: Add, results: Summarise) -> None:
    """300 steps leave 0.99^300 = 4.9 % of the initial weights, 290 steps 5.4 %."""
    add(changes={"trainer.max_steps": 300})
    assert ema_lag_sentences(results()) == []
    add("skips", {"trainer.max_steps": 300, "head.depth": 1}, values=lambda seed: {"guard/skipped_steps": 10.0})
    assert (
        "still hold 5 % of the initial weights (trainer.ema_decay=0.99 over 290 updates)"
        in ema_lag_sentences(results())[0]
    )


def test_the_logged_share_counts(add: Add, results: Summarise) -> None:
    """It is not a column; among seeds that differ, the largest counts."""
    add(values=lambda seed: {"ema/initial_share": 0.1 * seed})
    study = results()
    assert "still hold 20 % of the initial weights" in ema_lag_sentences(study)[0]
    assert not any("ema/" in metric.key for metric in study.metrics)
    assert not any("ema/" in key for key in study.references)


def test_metrics_that_begin_late_are_noted(add: Add, results: Summarise, tmp_path: Path) -> None:
    """A run that continued with a new metrics.jsonl has its last values, but not its earlier curve."""
    add(seeds=(0, 1))
    add("arm", {"head.depth": 1}, seeds=(0, 1))
    file = tmp_path / "outputs" / "cifar10+arm" / "seed1" / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[10:]))
    step = json.loads(file.read_text().splitlines()[0])["step"]
    baseline, arm = results().rows
    assert baseline.notes == ()
    assert arm.notes == (f"seed 1: its metrics begin at step {step}, its earlier metrics are not known",)


def test_worse_than_zero_is_remarked(add: Add, results: Summarise) -> None:
    add(values=lambda seed: {"val/diffusion": 1.67, "floor/zero_predictor": 1.0})
    worse = "baseline: the diffusion loss 1.670 is worse than predicting zero (1.000)"
    assert other_remarks(results()) == [f"{worse}; check objective, learning rate and data"]


def test_worse_than_zero_may_be_a_lag(add: Add, results: Summarise) -> None:
    add(changes={"trainer.max_steps": 40}, values=lambda seed: {"val/diffusion": 1.67, "floor/zero_predictor": 1.0})
    (remark,) = other_remarks(results())
    assert remark.endswith("; the EMA weights lag")


def test_an_alignment_that_does_not_improve_at_first_is_remarked(add: Add, results: Summarise) -> None:
    rising, flat = ({1: {"val/cosine": 0.1}, 500: {"val/cosine": last}} for last in (0.2, 0.11))
    add(course=lambda seed: rising, values=lambda seed: {"val/cosine": 0.3})
    add("arm", {"loss.lambda_max": 0.25}, course=lambda seed: rising if seed == 1 else flat)
    add("off", {"loss.lambda_max": 0.0}, course=lambda seed: flat)
    (remark,) = other_remarks(results())
    assert remark.startswith(
        "arm (seeds 0, 2): the cosine of projected and teacher tokens rose by 0.010 in 500 updates"
    )
    assert "(loss.taps: mid), its weight (loss.lambda_max=0.25)" in remark
    assert "(optimizer.lr.head=0.001)" in remark


def test_a_run_that_ends_in_its_warm_up_has_no_value_after_it(add: Add, results: Summarise) -> None:
    add(changes={"loss.warmup_steps": 601})
    table = {what: measured for what, _, measured, _ in reported_rows(results().study.baseline)}
    assert table["training token loss, after warm-up"] == "not measured"
    assert table["training token loss, end"] != "not measured"


def test_expected_values_are_shown_beside_measured_ones(add: Add, results: Summarise) -> None:
    add(values=lambda seed: {"val/token": 0.6, "val/cosine": 0.4}, points=601)
    table = {what: (value, measured) for what, value, measured, _ in reported_rows(results().study.baseline)}
    assert table["token cosine similarity"] == ("0.30 to 0.35", "0.4000")
    assert table["training diffusion loss, end"][0] == "1.67"
    assert table["nearest-neighbour recall"] == ("60 to 70 %", "not measured")
    # written as exp(-5 step/steps) above its last value, with noise of 0.02 that 25 rows x 3 seeds average away
    for when, decay in (("start", np.exp(-5 / 600)), ("after warm-up", np.exp(-0.5)), ("epoch 20 of 40", np.exp(-2.5))):
        measured = float(table[f"training token loss, {when}"][1].split(" ± ")[0])
        assert measured == pytest.approx(0.6 + decay, abs=0.05 if when == "start" else 0.01)


def test_evaluations_by_several_versions_of_the_code_are_reported(add: Add, results: Summarise) -> None:
    one = {"code": [{"from_step": 0, "git_commit": "a" * 40, "code_state": "clean", "code_digest": "one"}]}
    add(seeds=(0, 1), summary=one)
    assert mixed_code_note(list(results().rows[0].arm.runs.values())) == []
    add(seeds=(2,), summary=one | {"evaluated_by": {"probe": "two"}})
    (said,) = mixed_code_note(list(results().rows[0].arm.runs.values()))
    assert "(probe: one; two)" in said
