"""Checks whether the sizes of a composed config's parts fit together, by the rules of their constructors, without
loading torch. Each rule is written once, in a module that the part imports too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from urepa.config.declared import declaration_of
from urepa.config.parts import KINDS, settings_that_are
from urepa.core.backbone_protocols import Backbone, condition_parts, takes_parts
from urepa.core.declared_keys import TAP
from urepa.core.errors import UserError
from urepa.core.part_names import TEXT
from urepa.core.protocols import Loss, Teacher
from urepa.core.track_protocols import Track, condition_widths
from urepa.method.alignment_grids import TEACHER, policy_of
from urepa.method.self_alignment import own_states


def check_shapes(config: dict[str, Any]) -> None:
    """Raises UserError for the first part of a run that could not be built."""
    trainer, data = config["trainer"], config["data"]
    loss: Loss = declaration_of(config["loss"])
    loss.check()
    loss.check_layout(min(trainer["batch_size"], trainer["validation_group"]), trainer["accumulation"])
    if loss.taps:  # without taps there is neither teacher nor head
        check_teacher(config["teacher"])
        declaration_of(config["head"]).check()
        declaration_of(config["schedule"]).check()
    track: Track = declaration_of(data)
    track.check()
    if loss.taps:
        check_rectangles(track, config["teacher"])
        check_tokens(loss, track, config["teacher"])
    backbone: Backbone = declaration_of(config["backbone"])
    check_latents(backbone, [as_shape(shape) for shape in track.latent_shapes])
    check_condition(backbone, track)
    if hasattr(backbone, "check_objective"):
        backbone.check_objective(declaration_of(config["objective"]))
    evaluated = [tap for _, tap in settings_that_are(TAP, config["evaluation"])]
    own = own_states(loss)
    for tap in (*evaluated, *loss.taps, *own.taps, *own.averaged, *own.frozen):
        backbone.check_tap(tap)


def check_latents(backbone: Any, shapes: Sequence[tuple[int, int, int]]) -> None:
    """Raises UserError if a declared backbone cannot take x0 of all of these shapes [C,H,W] in one run."""
    for shape in shapes:
        backbone.check(shape)
    if len(shapes) < 2:
        return
    if not hasattr(backbone, "check_latents"):
        sides = ", ".join(f"{height}x{width}" for _, height, width in shapes)
        raise UserError(
            f"backbone._target_={backbone._target_}: it takes x0 of one shape a run, and here are {sides}; choose "
            "another backbone, or data of one shape"
        )
    backbone.check_latents(shapes)


def check_condition(backbone: Any, track: Any) -> None:
    """Raises UserError if a declared backbone does not take the parts of the track's conditions, or takes them only
    with other widths."""
    taken, made = condition_parts(backbone), tuple(condition_widths(track))
    if takes_parts(backbone, made):
        if hasattr(backbone, "check_widths"):
            backbone.check_widths(condition_widths(track))
        if getattr(track, "shuffle_patches", False) and hasattr(backbone, "check_shuffled"):
            backbone.check_shuffled()
        return
    fitting = sorted(name for name, cls in KINDS["backbone"].items() if takes_parts(cls, made))
    elsewhere = "other data" if TEXT not in made else "other data, or another text_encoder@data.text_encoder"
    advice = f"choose a backbone of {' or '.join(fitting)}, or {elsewhere}" if fitting else f"choose {elsewhere}"
    raise UserError(
        f"backbone._target_={backbone._target_} is conditioned on {', '.join(taken)}, and the data's conditions have "
        f"{', '.join(made)}; {advice}"
    )


def latent_shape(track: Track) -> tuple[int, int, int]:
    """The shape [C,H,W] of x0 for a checked track."""
    return as_shape(track.latent_shape)


def as_shape(latent_shape: Sequence[int]) -> tuple[int, int, int]:
    """The shape as a tuple of three numbers."""
    channels, height, width = latent_shape
    return channels, height, width


def check_rectangles(track: Track, teacher: dict[str, Any]) -> None:
    """Raises UserError if a teacher, or one of several, does not take images of a shape that the track has."""
    declared: Teacher = declaration_of(teacher)
    for one in declared.members().values():
        track.teacher_grids(one)


def check_tokens(loss: Any, track: Track, teacher: dict[str, Any]) -> None:
    """Raises UserError if the loss compares the tokens of a sample with each other and a teacher has one token, such as
    its class token alone: the term would be 0 and train nothing. A grid other than the teacher's is not checked."""
    if not getattr(loss, "compares_tokens", False) or policy_of(loss) != TEACHER:
        return
    declared: Teacher = declaration_of(teacher)
    for name, one in declared.members().items():
        if any(rows * columns < 2 for rows, columns in track.teacher_grids(one)):
            key = f"teacher.teachers.{name}.grid" if name else "teacher.grid"
            raise UserError(
                f"{key} has one token, and the loss compares the tokens of a sample with each other (loss.level, or a "
                "term of loss.terms): give a larger grid, or loss.level=sample and terms that do not"
            )


def check_teacher(teacher: dict[str, Any]) -> None:
    """Raises UserError if a teacher, or one of several, does not take images of this size, or has no such grid."""
    declared: Teacher = declaration_of(teacher)
    declared.check()
