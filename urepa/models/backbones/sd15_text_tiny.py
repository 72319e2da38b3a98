"""A small U-Net of the same family as Stable Diffusion 1.5's."""

from __future__ import annotations

from dataclasses import dataclass

from urepa.models.backbones.sd15_text import SD15Text
from urepa.models.small_text_unet import SmallTextUNet


@dataclass
class SD15TextTiny(SmallTextUNet, SD15Text):
    """A small U-Net for CPUs with the condition and the layers of Stable Diffusion 1.5's."""

    _target_: str = "urepa.models.backbones.sd15_text_tiny.SD15TextTiny"
