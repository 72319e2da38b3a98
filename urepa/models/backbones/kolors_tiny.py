"""A small U-Net of the same family as Kolors'."""

from __future__ import annotations

from dataclasses import dataclass

from urepa.models.backbones.kolors import Kolors
from urepa.models.small_text_unet import SmallTextUNet


@dataclass
class KolorsTiny(SmallTextUNet, Kolors):
    """A small U-Net for CPUs with the condition and the layers of Kolors'."""

    _target_: str = "urepa.models.backbones.kolors_tiny.KolorsTiny"
