"""Which cells may stand beside the baseline's, and which seeds are pairs."""

from __future__ import annotations

from typing import Any

import pytest
from made_up import changed

from urepa.comparison.comparable import at_other_noise, metrics_of, obstacles, protocol, unpaired_by
from urepa.comparison.runs import as_text

TERMS = ("total", "diffusion", "token", "manifold", "x0_error")
EPSILON = "urepa.objectives.DDPMEpsilon"


@pytest.mark.parametrize(
    ("changes", "comparable"),
    [
        ({"loss.lambda_max": 0.8}, "diffusion token manifold x0_error"),
        ({"loss.manifold_weight": 0.0}, "diffusion token manifold x0_error"),
        ({"objective._target_": EPSILON}, "token manifold x0_error"),
        ({"objective.beta_schedule": "scaled_linear"}, "token manifold x0_error"),
        ({"teacher._target_": "another.Teacher"}, "diffusion x0_error"),
        ({"teacher.grid": [2, 2]}, "diffusion x0_error"),
        ({"teacher.image_size": 64}, "diffusion x0_error"),
        ({"loss.taps": {"mid": 1.0, "enc_last": 1.0}}, "diffusion x0_error"),
        ({"loss.level": "token"}, "diffusion token x0_error"),
        ({"loss": {"_target_": "urepa.alignment.DiffusionOnly"}}, "diffusion x0_error"),
        ({"head.depth": 1}, "total diffusion token manifold x0_error"),
        ({"loss.warmup_steps": 0, "data.limit": 4000}, "total diffusion token manifold x0_error"),
        ({"data.root": "elsewhere"}, "total diffusion token manifold x0_error"),
    ],
)
def test_only_what_is_the_same_quantity(config: dict[str, Any], changes: dict[str, Any], comparable: str) -> None:
    arm, baseline = as_text(changed(config, changes)), as_text(config)
    assert [t for t in TERMS if not obstacles(f"val/{t}", arm, baseline)] == comparable.split()
    by_bin = [t for t in TERMS if not obstacles(f"val/{t}_by_t/0.0-0.1", arm, baseline)]
    assert by_bin == comparable.split()
    assert obstacles("final/tap_knn", arm, baseline) == []


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"data.limit": 4000}, ["data.limit"]),
        ({"trainer.max_steps": 50}, ["trainer.max_steps"]),
        ({"trainer.batch_size": 64}, ["trainer.batch_size"]),
        ({"data.cfg_dropout": 0.2}, []),
        ({"objective._target_": EPSILON, "head.depth": 3, "loss.lambda_max": 0.0}, []),
    ],
)
def test_pairs_are_broken_by_data_and_steps_alone(
    config: dict[str, Any], changes: dict[str, Any], keys: list[str]
) -> None:
    assert unpaired_by(as_text(changed(config, changes)), as_text(config)) == keys


def test_another_beta_is_another_noise_level(config: dict[str, Any]) -> None:
    scaled = as_text(changed(config, {"objective.beta_schedule": "scaled_linear"}))
    assert at_other_noise(scaled, as_text(config)) == ["objective.beta_schedule"]
    assert at_other_noise(as_text(changed(config, {"objective._target_": EPSILON})), as_text(config)) == []


@pytest.mark.parametrize(
    ("changes", "validation_set", "same"),
    [
        ({"data.limit": 4000, "data.cfg_dropout": 0.0, "data.name": "half"}, "v", True),
        ({"data.validation_images": 10}, "v", False),
        ({"data.unshuffle": 4}, "v", False),
        ({"evaluation": {}}, "v", False),
        ({"evaluation.probe.knn": 5}, "v", False),
        ({"trainer.validation_group": 20}, "v", False),
        ({}, "w", False),
        ({"data.name": "half"}, None, False),  # an older run, that did not record its validation images
    ],
)
def test_the_protocol(config: dict[str, Any], changes: dict[str, Any], validation_set: str | None, same: bool) -> None:
    facts = [{} if v is None else {"validation_set": v} for v in (validation_set, validation_set and "v")]
    found = protocol(as_text(changed(config, changes)), facts[0])
    assert (found == protocol(as_text(config), facts[1])) is same


def test_a_later_evaluation_counts(config: dict[str, Any]) -> None:
    """A run that was trained without one and evaluated since stands beside runs that had it from the start."""
    late = as_text(changed(config, {"evaluation": {}}))
    facts = {"evaluation": config["evaluation"]}
    assert protocol(late, facts) == protocol(as_text(config), facts) == protocol(as_text(config), {})
    assert protocol(late, {"evaluation": {}}) == protocol(late, {}) != protocol(late, facts)


def test_unknown_evaluations_get_a_column_and_references_do_not() -> None:
    keys = {"final/fd_inception", "final/teacher_knn", "floor/zero_predictor", "val/token", "val/total", "train/total"}
    assert [m.key for m in metrics_of(keys)] == ["val/total", "val/token", "final/fd_inception"]
    assert [m.label for m in metrics_of(keys)][-1] == "fd inception"
