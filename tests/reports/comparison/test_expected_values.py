"""The description's expected values are shown only with its own experiment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up import changed, write_run
from test_tables import Elements

from urepa.reports.comparison.expected_values import documents_arm, of_steps
from urepa.reports.comparison.page import page
from urepa.reports.comparison.results import Results

Summarise = Callable[..., Results]
SECTION = "Reported and measured"


@pytest.fixture
def track_a(compose: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., None]:
    """track_a(ablation, **changes): a made-up run of the description's experiment."""
    config = compose("+experiment=track_a")

    def added(ablation: str = "baseline", experiment: str = "track_a", **changes: Any) -> None:
        folder = tmp_path / "outputs" / f"{experiment}+{ablation},{len(list(tmp_path.rglob('config.yaml')))}" / "seed42"
        write_run(folder, changed(config, changes), ablation=ablation, experiment=experiment, points=50)

    return added


def words(results: Results) -> str:
    return " ".join(Elements(page(results, [], [])).words)


def test_expected_values_are_not_shown_with_another_experiment(add: Callable[..., None], results: Summarise) -> None:
    """CIFAR-10 with the same λ and w."""
    add()
    assert documents_arm(results()) is None
    text = words(results())
    assert SECTION not in text
    assert "60 to 70 %" not in text


def test_expected_values_are_shown_with_the_documented_experiment(
    track_a: Callable[..., None], results: Summarise
) -> None:
    track_a()
    arm = documents_arm(results())
    assert arm is results().study.baseline or (arm is not None and arm.label == "baseline")
    assert of_steps(arm) == ""
    text = words(results())
    assert SECTION in text
    assert "next to those of baseline." in text
    assert "1.67" in text


def test_expected_values_are_shown_with_their_arm_and_not_with_the_baseline(
    track_a: Callable[..., None], results: Summarise
) -> None:
    """A control with λ = 0 is the baseline; the description does not expect its losses."""
    track_a()
    track_a("lambda_0", **{"loss.lambda_max": 0.0})
    found = results(baseline="lambda_0")
    arm = documents_arm(found)
    assert found.study.baseline.label == "lambda_0"
    assert arm is not None
    assert arm.label == "baseline"
    assert "next to those of baseline." in words(found)


@pytest.mark.parametrize("changes", [{"loss.lambda_max": 0.8}, {"loss.manifold_weight": 0.0}, {"loss.level": "token"}])
def test_expected_values_are_not_shown_with_other_losses(
    track_a: Callable[..., None], results: Summarise, changes: dict[str, Any]
) -> None:
    track_a(**changes)
    assert SECTION not in words(results())


def test_expected_values_are_not_shown_with_a_derived_experiment(
    track_a: Callable[..., None], results: Summarise
) -> None:
    track_a(experiment="track_b")
    assert SECTION not in words(results())


def test_another_length_of_the_run_is_reported(track_a: Callable[..., None], results: Summarise) -> None:
    track_a(**{"trainer.max_steps": 1000})
    assert "The description's run has 62,480 steps and this one 1,000: epochs are shares of its own" in words(results())
