"""Kolors' U-Net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from urepa.core.declared_keys import setting
from urepa.core.part_names import POOLED, TEXT
from urepa.models.published_unet import PublishedTextUNet


@dataclass
class Kolors(PublishedTextUNet):
    """Kolors' U-Net (Kuaishou 2024), SDXL's with a projection of its text encoder's wider tokens."""

    _target_: str = "urepa.models.backbones.kolors.Kolors"
    weights: str = setting('a hub id, a local diffusers folder, or "random"')
    gradient_checkpointing: bool = setting("recompute blocks in the backward pass: less memory, more time")
    family: ClassVar[str] = "kolors"
    condition_parts: ClassVar[tuple[str, ...]] = (TEXT, POOLED)
    title: ClassVar[str] = "Kolors"
    condition: ClassVar[str] = (
        "The condition is a caption. Its frozen tokens are projected to the width of cross-attention, which attends to "
        "the unmasked ones. Its pooled vector is embedded together with the height and width of the image in pixels, "
        "for an image that was neither scaled nor cropped, and added to the time embedding. If the caption is "
        "withheld, both are the data's null condition."
    )
