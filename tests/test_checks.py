"""What a composed config cannot say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from urepa.checks import check, check_effects, check_order, check_ranges, check_trainer
from urepa.errors import UserError

NO_LOSS = {"loss": {"_target_": "urepa.alignment.DiffusionOnly"}}
A_LOSS = {"loss": {"_target_": "urepa.alignment.AlignmentLoss"}}


@pytest.fixture(scope="module")
def trainer(compose: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return compose()["trainer"]


def test_the_quickstart_passes(compose: Callable[..., dict[str, Any]]) -> None:
    check(compose("seed=1"), ["seed=1"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trainer.max_steps", 0, "give 1 or more"),
        ("trainer.log_every", -1, "give 1 or more"),
        ("trainer.threads", 0, "give 1 or more"),
        ("trainer.clip_norm", 0.0, "give more than 0"),
        ("loss.lambda_max", -1.0, "give 0 or more"),
        ("loss.warmup_steps", -1, "give 0 or more"),
        ("optimizer.lr.backbone", -1.0, "give 0 or more"),
        ("optimizer.warmup_ratio", 2.0, "give 0 or more, at most 1"),
        ("optimizer.betas", [0.9], "give two numbers"),
        ("objective.beta_end", 2.0, "give more than 0, less than 1"),
        ("data.limit", -5, "give 1 or more"),
        ("data.unshuffle", 0, "give 1 or more"),
        ("data.cfg_dropout", 1.5, "give 0 or more, at most 1"),
        ("backbone.head_dim", 0, "give 1 or more"),
        ("evaluation.samples.sampler_steps", 0, "give 1 or more"),
        ("evaluation.probe", {"timestep": 5000}, "timestep=5000: the objective's last timestep is 999"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    compose: Callable[..., dict[str, Any]], key: str, value: Any, message: str
) -> None:
    config = compose()
    check_ranges(config)
    *path, last = key.split(".")
    place = config
    for name in path:
        place = place[name]
    place[last] = value
    with pytest.raises(UserError, match=f"{key}.*{message}"):
        check_ranges(config)


def test_none_is_no_number(compose: Callable[..., dict[str, Any]]) -> None:
    config = compose("trainer.clip_norm=null", "trainer.threads=null", "data.limit=null")
    check_ranges(config)


def test_taps_are_added_not_replaced() -> None:
    with pytest.raises(UserError, match="would only add"):
        check_effects(A_LOSS, ["loss.taps"])
    check_effects(A_LOSS, ["loss.taps.enc_last"])


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
