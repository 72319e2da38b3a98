"""Chroma's transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import SIZE, setting
from urepa.core.part_names import TEXT
from urepa.models.published_transformer import PublishedTransformer

if TYPE_CHECKING:
    from urepa.models.backbones.chroma_net import ChromaNetwork


@dataclass
class Chroma(PublishedTransformer):
    """Chroma's transformer (lodestones 2025), conditioned on the frozen tokens of captions. It is Flux.1's with one
    small network that computes the modulation of all blocks."""

    _target_: str = "urepa.models.backbones.chroma.Chroma"
    weights: str = setting('a hub id, a local diffusers folder, or "random"')
    gradient_checkpointing: bool = setting("recompute blocks in the backward pass: less memory, more time")
    num_layers: int = setting("number of double-stream blocks", ge=1, le=SIZE)
    num_single_layers: int = setting("number of single-stream blocks after them", ge=1, le=SIZE)
    num_attention_heads: int = setting("heads of attention in a block", ge=1, le=SIZE)
    approximator_hidden_dim: int = setting("width of the network that computes the modulation", ge=1, le=SIZE)
    approximator_layers: int = setting("layers of that network", ge=1, le=SIZE)
    family: ClassVar[str] = "chroma"
    title: ClassVar[str] = "Chroma"
    condition_parts: ClassVar[tuple[str, ...]] = (TEXT,)
    condition: ClassVar[str] = (
        "The condition is a caption: its frozen tokens, without the masked ones, are a second stream beside the "
        "image's. If the caption is withheld, they are the data's null condition."
    )
    text_fields: ClassVar[Mapping[str, str]] = {"joint_attention_dim": TEXT}
    channel_fields: ClassVar[Mapping[str, int]] = {"in_channels": 4}  # 2x2 latent pixels
    network: ClassVar[str] = "ChromaTransformer2DModel"
    block_counts: ClassVar[tuple[str, ...]] = ("num_layers", "num_single_layers")
    pipeline: ClassVar[str] = "ChromaPipeline"
    usual_tap: ClassVar[str] = "block_8"

    def adapter(self) -> type[ChromaNetwork]:
        from urepa.models.backbones.chroma_net import ChromaNetwork

        return ChromaNetwork
