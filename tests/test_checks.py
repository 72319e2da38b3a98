"""What a composed config cannot say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from urepa.checks import AT_LEAST_ONE, check, check_effects, check_order, check_trainer
from urepa.errors import UserError

NO_LOSS = {"loss": {"_target_": "urepa.alignment.DiffusionOnly"}}
A_LOSS = {"loss": {"_target_": "urepa.alignment.AlignmentLoss"}}


@pytest.fixture(scope="module")
def trainer(compose: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return compose()["trainer"]


def test_the_quickstart_passes(compose: Callable[..., dict[str, Any]]) -> None:
    check(compose("seed=1"), ["seed=1"])


@pytest.mark.parametrize("key", AT_LEAST_ONE)
@pytest.mark.parametrize("value", [0, -1])
def test_numbers_below_one_are_refused(trainer: dict[str, Any], key: str, value: int) -> None:
    with pytest.raises(UserError, match=f"trainer.{key}={value}: give 1 or more"):
        check_trainer(trainer | {key: value}, 1)


def test_a_clip_norm_is_positive_or_none(trainer: dict[str, Any]) -> None:
    check_trainer(trainer | {"clip_norm": None}, 1)
    with pytest.raises(UserError, match="or null for none"):
        check_trainer(trainer | {"clip_norm": 0.0}, 1)


@pytest.mark.parametrize(("world", "accumulation", "fits"), [(1, 1, True), (4, 2, True), (3, 1, False), (8, 16, False)])
def test_the_global_batch_divides(trainer: dict[str, Any], world: int, accumulation: int, fits: bool) -> None:
    changed = trainer | {"batch_size": 64, "accumulation": accumulation}
    if fits:
        check_trainer(changed, world)
    else:
        with pytest.raises(UserError, match=f"batch_size=64 .*{world} processes.*multiple of {world * accumulation}"):
            check_trainer(changed, world)


@pytest.mark.parametrize("key", ["head", "head.depth", "teacher", "teacher.grid", "optimizer.lr.head"])
def test_keys_without_effect_are_refused_where_there_is_no_loss(key: str) -> None:
    with pytest.raises(UserError, match=f"{key} has no effect with loss=none"):
        check_effects(NO_LOSS, [key])
    check_effects(A_LOSS, [key])
    check_effects(NO_LOSS, ["optimizer.lr.backbone", "headless", "seed"])


def test_an_arm_before_its_experiment_is_refused() -> None:
    with pytest.raises(UserError, match=r"write \+experiment=... first"):
        check_order(["+ablation=x", "seed=1", "+experiment=y"])
    for fine in (["+experiment=y", "+ablation=x"], ["+ablation=x"], ["+experiment=y"], []):
        check_order(fine)
