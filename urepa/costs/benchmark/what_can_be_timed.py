"""Refuses configs that `urepa.bench` cannot time."""

from __future__ import annotations

from typing import Any

from urepa.config.declared import declaration_of
from urepa.core.backbone_protocols import Backbone
from urepa.core.descriptions import format_value
from urepa.core.errors import UserError
from urepa.core.part_names import CLASS
from urepa.core.teacher_names import ALONE
from urepa.core.track_protocols import condition_widths
from urepa.method.self_alignment import NO_OWN_STATES, own_states


def check_bench(config: dict[str, Any]) -> None:
    """Raises UserError if a requested loop does not exist for the config."""
    settings, track = config["bench"], declaration_of(config["data"])
    if track.online_latents or track.online_teacher:
        raise UserError(
            "bench times a step over records: leave data.online_latents and data.online_teacher out; what they add "
            "is counted by `python -m urepa.plan`, and bench.against=online times an online teacher"
        )
    if tuple(condition_widths(track)) != (CLASS,):
        raise UserError(
            "bench times steps with class ids as conditions, and this experiment has others; leave data.captions and "
            "data.condition out"
        )
    if settings["against"] == "online" and not declaration_of(config["loss"]).taps:
        raise UserError(
            "bench.against=online runs the teacher in every step, and this loss has none; choose another loss"
        )
    if settings["against"] == "online" and getattr(track, "sees", "images") != "images":
        raise UserError(
            "bench.against=online gives the teacher the images, and data.teacher_sees other ones; leave the latter out"
        )
    has_rectangles = any(height != width for _, height, width in track.latent_shapes)
    for key, value in (("against", "online"), ("against", "documented"), ("parts", True)):
        if settings[key] == value and has_rectangles:
            raise UserError(
                f"bench.{key}={format_value(value)} times a step over squares, and this track has other shapes; leave "
                "data.buckets out"
            )
    if settings["against"] == "plain" and own_states(declaration_of(config["loss"])) != NO_OWN_STATES:
        raise UserError(
            "bench.against=plain writes a loss with a teacher, or none, and this one aligns the backbone with itself; "
            "leave bench.against out"
        )
    if settings["against"] == "plain" and getattr(declaration_of(config["loss"]), "has_class_token", False):
        raise UserError(
            "bench.against=plain has no class token, which this loss trains with the image; leave bench.against out"
        )
    if settings["against"] == "plain" and ALONE not in declaration_of(config["teacher"]).members():
        raise UserError("bench.against=plain takes tokens of one teacher; choose one, or leave bench.against out")
    backbone: Backbone = declaration_of(config["backbone"])
    if settings["parts"] and not backbone.is_diffusers_unet:
        raise UserError("bench.parts times the parts of a U-Net's step, and this experiment has no U-Net; leave it out")
