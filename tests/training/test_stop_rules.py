"""Rules that end a run before its last step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.runs.run_folder import RunFolder
from urepa.runs.summary import early_text, end_step, is_finished, read_summary
from urepa.training.checks.combinations import check
from urepa.training.stop_rules.control_overtaken import ControlOvertaken
from urepa.training.stop_rules.plateau import Plateau

Compose = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([3, 2, 1], None),
        ([3, 2, 2, 2], (2, 20)),  # equal is no improvement
        ([3, 2, 2, 1.9, 2, 2], (1.9, 40)),
        ([3, 2, 2, 1.9, 2], None),
        ([1, 3, 2], (1, 10)),
        ([1, 3], None),
    ],
)
def test_a_plateau_is_patience_validations_without_an_improvement(
    values: list[float], ends: tuple[float, int] | None
) -> None:
    rule = Plateau(metric="val/diffusion", patience=2, min_delta=0.0, after=0)
    by_step = {10 * (i + 1): value for i, value in enumerate(values)}
    expected = None
    if ends is not None:
        expected = f"val/diffusion has not improved for 2 validations: its best is {ends[0]}, at step {ends[1]}"
    assert rule.why(by_step, {}) == expected
    before = dict(list(by_step.items())[:-1])
    assert rule.why(before, {}) is None, "it ends at the first such validation"


def test_small_improvements_and_early_values_do_not_count() -> None:
    by_step = {10: 0.5, 20: 2.0, 30: 1.95, 40: 1.91}
    assert Plateau(metric="m", patience=2, min_delta=0.1, after=20).why(by_step, {}) is not None
    assert Plateau(metric="m", patience=2, min_delta=0.01, after=20).why(by_step, {}) is None
    assert Plateau(metric="m", patience=3, min_delta=0.0, after=0).why(by_step, {}) is not None


def rows(folder: Path, values: dict[int, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"step": step, "val/diffusion": value, "time": step}) for step, value in values.items())
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_a_control_is_overtaken_at_the_same_step() -> None:
    controls = {10: 3.0, 20: 2.0, 30: 1.0}

    def rule(**changes: Any) -> ControlOvertaken:
        usual = {"control": "there/seed0", "metric": "val/diffusion", "patience": 1, "margin": 0.0, "after": 0}
        return ControlOvertaken(**usual | changes)

    assert rule().why({10: 3.5, 20: 2.0}, controls) is None, "equal is not below"
    assert (
        rule().why({10: 3.5, 20: 1.9}, controls)
        == "val/diffusion 1.9 is below the control's 2 at step 20 (there/seed0)"
    )
    assert rule().why({10: 3.5, 15: 0.1}, controls) is None, "the control has no step 15"
    assert rule(margin=0.2).why({20: 1.9}, controls) is None
    assert rule(after=30).why({20: 1.9}, controls) is None
    assert rule(patience=2).why({10: 3.5, 20: 1.9}, controls) is None
    assert rule(patience=2).why({10: 2.5, 20: 1.9}, controls) is not None


@pytest.mark.slow
def test_a_rule_needs_a_metric_of_the_run_and_a_paired_control(compose: Compose, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"stop_when.metric=val/toke is no validation loss .*; it has val/diffusion, .*val/token"
    ):
        check(compose("stop_when=plateau", "stop_when.metric=val/toke"), [])
    control = tmp_path / "control" / "seed0"
    asked = ("stop_when=control_overtaken", f"stop_when.control={control}", "trainer.validate_every=10")
    with pytest.raises(UserError, match=r"stop_when.control=.* does not exist"):
        check(compose(*asked), [])
    rows(control, {10: 3.0})
    RunFolder(control).store_config(compose("loss.lambda_max=0"))
    with pytest.raises(UserError, match="is not finished"):
        check(compose(*asked), [])
    summary = {"experiment": "quickstart", "ablation": "baseline", "seed": 0, "step": 900, "metrics": {}, "seconds": {}}
    (control / "summary.json").write_text(json.dumps(summary))
    check(compose(*asked), [])
    with pytest.raises(UserError, match="is no paired control: its seed is 0 and this run's 1"):
        check(compose(*asked, "seed=1"), [])
    with pytest.raises(UserError, match=r"is no paired control: its trainer.batch_size is 24 and this run's 12"):
        check(compose(*asked, "trainer.batch_size=12"), [])
    rows(control, {0: 3.5, 10: 3.0})  # with a warm start
    with pytest.raises(UserError, match="has no val/diffusion at a step at which this run validates"):
        check(compose(*asked, "trainer.validate_every=15"), [])


def test_descriptions_name_every_setting() -> None:
    rule = ControlOvertaken(control="outputs/control/seed0", metric="val/x", patience=7, margin=0.25, after=300)
    assert all(word in rule.description() for word in ("val/x", "control", "7", "0.25", "300"))
    plateau = Plateau(metric="val/x", patience=7, min_delta=0.25, after=300)
    assert all(word in plateau.description() for word in ("val/x", "7", "0.25", "300"))
    assert declaration_of({"_target_": "urepa.training.stop_rules.never.Never"}).description() == ""


def test_a_run_that_ended_early_is_finished_at_that_step() -> None:
    summary = {"step": 30, "ended_early": {"step": 30, "of": 90, "why": "because"}}
    assert (end_step(summary, 90), is_finished(summary, 90)) == (30, True)
    assert early_text(summary) == "ended early, at step 30 of 90, by stop_when: because"
    assert not is_finished({"step": 30}, 90)
    assert not is_finished(None, 90)
    assert early_text({"step": 90, "ended_early": None}) == ""


@pytest.mark.parametrize("early", ["because", 30, {"step": "30", "of": 90, "why": "x"}, {"step": 30, "of": 90}])
def test_an_early_end_of_another_form_is_not_read(early: Any, tmp_path: Path) -> None:
    facts = {"experiment": "a", "ablation": "", "seed": 0, "step": 30, "metrics": {}, "seconds": {}}
    (tmp_path / "summary.json").write_text(json.dumps(facts | {"ended_early": early}))
    with pytest.raises(UserError, match="its ended_early is not that of a run"):
        read_summary(tmp_path)
