"""A config is refused with the message of the part that could not be built, and nothing that can be built is
refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.models.teachers.dino.dinov2_positions import RULES
from urepa.models.teachers.vit_sizes import Positions
from urepa.training.assembly import build_loss, build_model, build_part
from urepa.training.checks.sizes import check_shapes

Compose = Callable[..., dict[str, Any]]
SIT = ("backbone=sit_tiny", "objective=flow", "~loss.taps.mid", "+loss.taps.block_1=1")


def built(config: dict[str, Any]) -> None:
    """The parts, in the trainer's order."""
    loss, trainer = build_loss(config), config["trainer"]
    declaration_of(config["loss"]).check_layout(
        min(trainer["batch_size"], trainer["validation_group"]), trainer["accumulation"]
    )
    teacher = build_part(config["teacher"]) if loss.taps else None
    build_model(config, build_part(config["data"]), teacher, loss)


@pytest.mark.fast(2)
@pytest.mark.parametrize(
    "overrides",
    [
        ("backbone.block_out_channels=[32,64,100]",),
        ("backbone.attention=[true]",),
        ("backbone.block_out_channels=[]", "backbone.attention=[]"),
        ("data.image_size=36",),
        ("data.unshuffle=3",),
        ("data.flip=true",),
        ("+loss.taps.block_1=1",),
        ("evaluation=knn", "evaluation.knn.tap=block_1"),
        ("trainer.batch_size=1",),
        ("trainer.accumulation=2",),
        ("loss.time_power=1",),
        ("teacher.image_size=100",),
        ("teacher.grid=[9,9]",),
        ("teacher.stride=4",),
        ("teacher=dinov2_b", "teacher.image_size=100"),
        ("teacher=dinov2_b", "teacher.positions=timm"),
        ("teacher=clip_l", "teacher.positions=meta"),
        ("teacher=several",),
        (*SIT, "backbone.patch=3"),
        (*SIT, "backbone.width=66"),
        (*SIT, "+loss.taps.block_99=1"),
    ],
)
def test_configs_that_cannot_be_built_are_refused_with_the_same_message(
    compose: Compose, overrides: tuple[str, ...]
) -> None:
    config = compose(*overrides)
    with pytest.raises(UserError) as part:
        built(config)
    with pytest.raises(UserError) as check:
        check_shapes(config)
    assert str(check.value) == str(part.value)


@pytest.mark.parametrize("overrides", [(), SIT, ("loss=none", "teacher.grid=[9,9]", "evaluation=none")])
def test_configs_that_can_be_built_are_not_refused(compose: Compose, overrides: tuple[str, ...]) -> None:
    config = compose(*overrides)
    check_shapes(config)
    built(config)
    assert declaration_of(config["data"]).latent_shape == build_part(config["data"]).latent_shape


def test_every_rule_of_positions_can_be_chosen() -> None:
    assert RULES.keys() == {rule.value for rule in Positions}
