"""Whether the parts of a composed config have sizes that fit together: the rules of their constructors, before torch
loads. Each rule is written once, in the module that a part imports too."""

from __future__ import annotations

from functools import partial
from typing import Any

from urepa.config.declared import declaration_of
from urepa.core.loss_settings import check_layout, check_loss
from urepa.core.protocols import Teacher
from urepa.data.tracks.pixel_sizes import check_pixels, unshuffled_shape
from urepa.models.backbones.backbone_sizes import check_sit, check_sit_adapters, check_unet, check_unet_tap, sit_block


def check_shapes(config: dict[str, Any]) -> None:
    """UserError on the first part of a run that could not be built."""
    loss, trainer, data = config["loss"], config["trainer"], config["data"]
    if "level" in loss:
        keys = ("lambda_max", "manifold_weight", "taps", "diffusion_fraction", "stop_step", "time_power")
        check_loss(**{key: loss[key] for key in keys})
        group = min(trainer["batch_size"], trainer["validation_group"])
        check_layout(loss["level"], group, trainer["accumulation"])
    if loss.get("taps"):  # without, no teacher is made
        check_teacher(config["teacher"])
    check_track(data)
    check_backbone(config["backbone"], latent_shape(data))
    if config["backbone"]["_target_"].endswith(".sit") and "rank" in config["lora"]:
        check_sit_adapters(config["lora"]["targets"], config["lora"]["blocks"])
    evaluated = [settings["tap"] for settings in config["evaluation"].values() if "tap" in settings]
    for tap in (*evaluated, *loss.get("taps", ())):
        check_tap(config["backbone"], tap)


def check_teacher(teacher: dict[str, Any]) -> None:
    """UserError where a teacher, or one of several, takes no images of this size, or has no such grid."""
    declared: Teacher = declaration_of(teacher)
    declared.check()


def check_track(data: dict[str, Any]) -> None:
    """UserError where a small track's images cannot be cut so."""
    if data["_target_"].endswith(".PixelTrack"):
        check_pixels(data["source"], data["image_size"], data["unshuffle"], data["flip"])


def latent_shape(data: dict[str, Any]) -> tuple[int, int, int]:
    """Of x0, [C,H,W]."""
    if "latent_shape" in data:
        channels, height, width = data["latent_shape"]
        return channels, height, width
    return unshuffled_shape(data["channels"], data["image_size"], data["unshuffle"])


def check_backbone(backbone: dict[str, Any], latent: tuple[int, int, int]) -> None:
    """UserError where a backbone's sizes do not fit together, or the latent."""
    if backbone["_target_"].endswith(".tiny_unet"):
        check_unet(backbone["block_out_channels"], backbone["attention"], latent)
    elif backbone["_target_"].endswith(".sit"):
        check_sit(backbone["patch"], backbone["width"], backbone["heads"], latent)


def check_tap(backbone: dict[str, Any], tap: str) -> None:
    """UserError for a tap that the backbone has not."""
    is_sit = backbone["_target_"].endswith(".sit")
    check = partial(sit_block, depth=backbone["depth"]) if is_sit else check_unet_tap
    check(tap)
