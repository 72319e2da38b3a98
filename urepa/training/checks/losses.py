"""Checks of a loss that compares attention maps (`urepa.method.attention_maps`), of one with a class token, and of one
with an earlier run's weights, without torch."""

from __future__ import annotations

from typing import Any

from urepa.config.declared import declaration_of
from urepa.config.parts import SCHEMAS, settings_that_are
from urepa.core.declared_keys import TIME
from urepa.core.errors import UserError
from urepa.core.protocols import Teacher
from urepa.core.teacher_names import ALONE
from urepa.core.track_protocols import Track
from urepa.evaluation.measures.denoising import Denoising
from urepa.method.attention_maps import attention_of
from urepa.method.self_alignment import own_states

DENOISING = Denoising._target_


def check_attention(config: dict[str, Any]) -> None:
    """Raises UserError if the loss compares attention maps, and the backbone or the teacher has none, or the teacher's
    tokens are read from a cache, which has none."""
    taps = attention_of(declaration_of(config["loss"]))
    if not taps:
        return
    backbone: Any = declaration_of(config["backbone"])
    if not hasattr(backbone, "check_attention"):
        raise UserError(
            f"backbone._target_={backbone._target_}: it does not hand out its attention maps, which loss.attention "
            "compares; choose a SiT, or another loss"
        )
    for tap in taps:
        backbone.check_attention(tap)
    teacher: Teacher = declaration_of(config["teacher"])
    one: Any = teacher.members().get(ALONE)  # several were refused by the loss
    if not getattr(one, "attention_maps", False):
        raise UserError(
            f"teacher._target_={config['teacher']['_target_']}: it has no attention maps, which loss.attention "
            "compares; choose a vision transformer, as teacher=dinov2_s, or another loss"
        )
    track: Track = declaration_of(config["data"])
    if not track.online_teacher:
        raise UserError(
            "loss.attention compares attention maps, which are too large for a cache: give data.online_teacher=true"
        )


def check_class_token(config: dict[str, Any]) -> None:
    """Raises UserError if the loss trains a class token and the backbone has none, or the reverse, if it is not the
    teacher's, or if an evaluation noises images itself, for which there is no class token."""
    loss, values = declaration_of(config["loss"]), config["backbone"].get("class_token", 0)
    if not getattr(loss, "has_class_token", False):
        if values:
            raise UserError(
                f"backbone.class_token={values} needs a loss that trains it, which this one does not: give loss=reg, "
                "or backbone.class_token=0"
            )
        return
    teacher: Teacher = declaration_of(config["teacher"])
    width = getattr(teacher.members().get(ALONE), "width", values or "WIDTH")
    if values != width:
        raise UserError(
            "this loss denoises a vector of the teacher's width with the image: give a SiT with "
            f"backbone.class_token={width}"
        )
    noised = [key for key, _ in settings_that_are(TIME, config["evaluation"], "evaluation")]
    noised += [
        f"evaluation.{name}"
        for name, one in config["evaluation"].items()
        if one["_target_"] == DENOISING or hasattr(SCHEMAS[one["_target_"]], "nested")
    ]
    if noised:
        raise UserError(
            f"{'.'.join(noised[0].split('.')[:2])} noises images itself, and there is no class token for them, which a "
            "backbone with a class token needs: leave this evaluation out"
        )


def check_guidance(config: dict[str, Any]) -> None:
    """Raises UserError if the loss guides an earlier run's states by a condition that no sample has."""
    loss, track = declaration_of(config["loss"]), declaration_of(config["data"])
    if own_states(loss).frozen and loss.guidance != 1 and track.cfg_dropout == 1:
        raise UserError(
            f"loss.guidance={loss.guidance} has no effect with data.cfg_dropout=1, where no sample has a condition: "
            "give loss.guidance=1"
        )
