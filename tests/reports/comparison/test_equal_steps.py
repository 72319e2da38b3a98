"""Runs that ended early are set apart, or compared at an equal step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from made_up import COMMIT

from urepa.core.errors import UserError
from urepa.reports.comparison.arms import ComparedArms, group_runs
from urepa.reports.comparison.equal_steps import at_step, early_sentences
from urepa.reports.comparison.read_runs import find_folders, load_curves
from urepa.training.provenance import data_facts, record

Add, Study = Callable[..., None], Callable[..., ComparedArms]
EARLY = {"step": 300, "ended_early": {"step": 300, "of": 600, "why": "it stands still"}}


@pytest.fixture
def early_arm(add: Add, tmp_path: Path) -> None:
    """Two full runs, and two of an arm that ended at half of their steps, with lower losses."""
    add(seeds=(0, 1), course=lambda seed: {300: {"val/diffusion": 0.5 + seed}, 600: {"val/diffusion": 0.1}})
    arm = {"head.depth": 1, "trainer.max_steps": 300}  # so that its rows end there
    add("arm", arm, seeds=(0, 1), course=lambda seed: {300: {"val/diffusion": 0.4 + seed}}, summary=EARLY)
    for file in tmp_path.glob("outputs/*arm/seed*/config.yaml"):
        file.write_text(file.read_text().replace("max_steps: 300", "max_steps: 600"))


@pytest.mark.usefixtures("early_arm")
def test_a_run_that_ended_early_is_not_compared_at_its_end(study: Study) -> None:
    found = study()
    assert [arm.label for arm in found.arms] == ["baseline"]
    assert [item.reason for item in found.apart] == [
        "ended early, at step 300 of 600, by stop_when: it stands still: its last values are of fewer steps; at_step=N "
        "compares at step N"
    ] * 2
    (sentence,) = early_sentences([item.run for item in found.apart])
    assert sentence.startswith("Ended early by their stop rule, and not compared with full runs: 2 (")
    assert sentence.endswith("at_step=300 compares all runs at an equal step.")
    assert early_sentences([run for arm in found.arms for run in arm.runs.values()]) == []


@pytest.mark.usefixtures("early_arm")
def test_at_an_equal_step_all_are_compared(tmp_path: Path) -> None:
    runs = [at_step(run, 300) for run in load_curves(find_folders(str(tmp_path / "outputs")))]
    found = group_runs(runs, [], None)
    assert not found.apart
    values = {arm.label: [arm.runs[seed].last("val/diffusion") for seed in (0, 1)] for arm in found.arms}
    assert sorted(values.values()) == [[0.4, 1.4], [0.5, 1.5]]
    assert all(run.last_step == 300 for arm in found.arms for run in arm.runs.values())
    assert "seconds" not in found.baseline.runs[0].facts, "the cost of a longer run"
    with pytest.raises(UserError, match="no validation at step 310: its last logged step is"):
        group_runs([at_step(run, 310) for run in runs], [], None)


def test_runs_that_still_train_are_compared_at_a_step_that_they_have_passed(add: Add, tmp_path: Path) -> None:
    """By what is recorded before their first step: the same samples, validation set and code."""
    course = {300: {"val/diffusion": 0.4}}
    add(seeds=(0, 1), course=lambda seed: course)
    add("arm", {"head.depth": 1}, seeds=(0, 1), finished=False, course=lambda seed: course)
    code = {"git_commit": COMMIT, "code_state": "clean"}
    data = {"latents": {"csv_sha256": {"train.csv": "t", "val.csv": "v"}}, "tokens": None}
    for folder in sorted(tmp_path.glob("outputs/*arm/seed*")):
        record(folder, data_facts(data, {}) | {"validation_set": "v" * 16}, code, 0)

    def compared(step: int) -> ComparedArms:
        runs = load_curves(find_folders(str(tmp_path / "outputs")))
        return group_runs([at_step(run, step) for run in runs], [], None)

    found = compared(300)
    assert not found.apart
    assert {arm.label: sorted(arm.runs) for arm in found.arms} == {"baseline": [0, 1], "arm": [0, 1]}
    assert all("unknown" not in arm.config.values() for arm in found.arms)

    record(
        folder, data_facts(data, {}) | {"validation_set": "v" * 16}, code | {"git_commit": "b" * 40, "numerics": 1}, 250
    )
    (mixed,) = compared(300).apart
    assert mixed.reason.startswith("trained by several versions of the code")
    record(folder, data_facts(data, {}) | {"validation_set": "v" * 16}, code, 0)
    record(
        folder, data_facts(data, {}) | {"validation_set": "v" * 16}, code | {"git_commit": "b" * 40, "numerics": 1}, 310
    )
    assert not compared(300).apart, "the later code did not train these steps"
    record(folder, data_facts(data, {}) | {"validation_set": "w" * 16}, code, 0)
    (other,) = compared(300).apart
    assert other.reason.startswith("another validation set or protocol")
