"""A small U-Net of the same family as Stable Diffusion XL's."""

from __future__ import annotations

from dataclasses import dataclass

from urepa.models.backbones.sdxl import SDXL
from urepa.models.small_text_unet import SmallTextUNet


@dataclass
class SDXLTiny(SmallTextUNet, SDXL):
    """A small U-Net for CPUs with the condition and the layers of Stable Diffusion XL's."""

    _target_: str = "urepa.models.backbones.sdxl_tiny.SDXLTiny"
