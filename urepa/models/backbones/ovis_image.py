"""Ovis-Image's transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import SIZE, setting
from urepa.core.part_names import TEXT
from urepa.models.published_transformer import PublishedTransformer

if TYPE_CHECKING:
    from urepa.models.backbones.ovis_image_net import OvisImageNetwork


@dataclass
class OvisImage(PublishedTransformer):
    """Ovis-Image's transformer (AIDC-AI 2025), conditioned on the frozen tokens of captions."""

    _target_: str = "urepa.models.backbones.ovis_image.OvisImage"
    weights: str = setting('a hub id, a local diffusers folder, or "random"')
    gradient_checkpointing: bool = setting("recompute blocks in the backward pass: less memory, more time")
    num_layers: int = setting("number of double-stream blocks", ge=1, le=SIZE)
    num_single_layers: int = setting("number of single-stream blocks after them", ge=1, le=SIZE)
    num_attention_heads: int = setting("heads of attention in a block", ge=1, le=SIZE)
    family: ClassVar[str] = "ovis_image"
    title: ClassVar[str] = "Ovis-Image"
    condition_parts: ClassVar[tuple[str, ...]] = (TEXT,)
    condition: ClassVar[str] = (
        "The condition is a caption: its frozen tokens are a second stream beside the image's, padding "
        "included. If the caption is withheld, they are the data's null condition."
    )
    text_fields: ClassVar[Mapping[str, str]] = {"joint_attention_dim": TEXT}
    channel_fields: ClassVar[Mapping[str, int]] = {"in_channels": 4, "out_channels": 4}  # 2x2 latent pixels
    network: ClassVar[str] = "OvisImageTransformer2DModel"
    block_counts: ClassVar[tuple[str, ...]] = ("num_layers", "num_single_layers")
    pipeline: ClassVar[str] = "OvisImagePipeline"
    usual_tap: ClassVar[str] = "block_11"  # a third of the depth: no published one was found
    loads_lora: ClassVar[bool] = False

    def adapter(self) -> type[OvisImageNetwork]:
        from urepa.models.backbones.ovis_image_net import OvisImageNetwork

        return OvisImageNetwork
