"""Checks of a loss that compares attention maps (`urepa.method.attention_maps`), and of one with an earlier run's
weights, without torch."""

from __future__ import annotations

from typing import Any

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.core.protocols import Teacher
from urepa.core.teacher_names import ALONE
from urepa.core.track_protocols import Track
from urepa.method.attention_maps import attention_of
from urepa.method.self_alignment import own_states


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


def check_guidance(config: dict[str, Any]) -> None:
    """Raises UserError if the loss guides an earlier run's states by a condition that no sample has."""
    loss, track = declaration_of(config["loss"]), declaration_of(config["data"])
    if own_states(loss).frozen and loss.guidance != 1 and track.cfg_dropout == 1:
        raise UserError(
            f"loss.guidance={loss.guidance} has no effect with data.cfg_dropout=1, where no sample has a condition: "
            "give loss.guidance=1"
        )
