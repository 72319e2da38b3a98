"""Stable Diffusion 1.5's U-Net with captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from urepa.core.declared_keys import setting
from urepa.core.part_names import TEXT
from urepa.models.published_unet import PublishedTextUNet


@dataclass
class SD15Text(PublishedTextUNet):
    """Stable Diffusion 1.5's U-Net (Rombach et al. 2022, arXiv 2112.10752), conditioned on the frozen tokens of
    captions."""

    _target_: str = "urepa.models.backbones.sd15_text.SD15Text"
    weights: str = setting('a hub id, a local diffusers folder, or "random"')
    gradient_checkpointing: bool = setting("recompute blocks in the backward pass: less memory, more time")
    family: ClassVar[str] = "sd15"
    condition_parts: ClassVar[tuple[str, ...]] = (TEXT,)
    title: ClassVar[str] = "Stable Diffusion 1.5"
    condition: ClassVar[str] = (
        "The condition is a caption: cross-attention attends to its frozen tokens, except masked ones. If the caption "
        "is withheld, it attends to the data's null condition."
    )
