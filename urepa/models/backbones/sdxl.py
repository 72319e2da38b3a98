"""Stable Diffusion XL's U-Net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from urepa.core.declared_keys import setting
from urepa.core.part_names import POOLED, TEXT
from urepa.models.published_unet import PublishedTextUNet


@dataclass
class SDXL(PublishedTextUNet):
    """Stable Diffusion XL's U-Net (Podell et al. 2023, arXiv 2307.01952), conditioned on the frozen tokens of captions,
    their pooled vector and the size of the image."""

    _target_: str = "urepa.models.backbones.sdxl.SDXL"
    weights: str = setting('a hub id, a local diffusers folder, or "random"')
    gradient_checkpointing: bool = setting("recompute blocks in the backward pass: less memory, more time")
    family: ClassVar[str] = "sdxl"
    condition_parts: ClassVar[tuple[str, ...]] = (TEXT, POOLED)
    title: ClassVar[str] = "Stable Diffusion XL"
    condition: ClassVar[str] = (
        "The condition is a caption. Cross-attention attends to its frozen tokens, except masked ones. Its pooled "
        "vector is embedded together with the height and width of the image in pixels, for an image that was neither "
        "scaled nor cropped, and added to the time embedding. If the caption is withheld, both are the data's null "
        "condition."
    )
