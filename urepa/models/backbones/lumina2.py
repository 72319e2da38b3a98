"""Lumina-Image 2.0's transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.declared_keys import SIZE, setting
from urepa.core.errors import UserError
from urepa.core.part_names import TEXT
from urepa.models.published_transformer import PublishedTransformer

if TYPE_CHECKING:
    from urepa.models.backbones.lumina2_net import Lumina2Network


@dataclass
class Lumina2(PublishedTransformer):
    """Lumina-Image 2.0's transformer (Qin et al. 2025, arXiv 2503.21758), conditioned on the frozen tokens of
    captions."""

    _target_: str = "urepa.models.backbones.lumina2.Lumina2"
    weights: str = setting('a hub id, a local diffusers folder, or "random"')
    gradient_checkpointing: bool = setting("recompute blocks in the backward pass: less memory, more time")
    num_refiner_layers: int = setting(
        "number of blocks that process only image tokens, and of those that process only text", ge=1, le=SIZE
    )
    num_layers: int = setting("number of blocks after them, which process both", ge=1, le=SIZE)
    hidden_size: int = setting("width of a token", ge=1, le=SIZE)
    num_attention_heads: int = setting("heads of attention in a block", ge=1, le=SIZE)
    num_kv_heads: int = setting("heads of keys and values; several heads of queries share each", ge=1, le=SIZE)
    axes_dim_rope: list[int] = setting("channels of a head for the text position, row and column", ge=2, le=SIZE)
    axes_lens: list[int] = setting("largest number of text positions, rows and columns", ge=1, le=SIZE)
    family: ClassVar[str] = "lumina2"
    title: ClassVar[str] = "Lumina-Image 2.0"
    condition_parts: ClassVar[tuple[str, ...]] = (TEXT,)
    condition: ClassVar[str] = (
        "The condition is a caption: its frozen tokens, without the masked ones, come before the image's in one "
        "sequence. If the caption is withheld, they are the data's null condition."
    )
    text_fields: ClassVar[Mapping[str, str]] = {"cap_feat_dim": TEXT}
    channel_fields: ClassVar[Mapping[str, int]] = {"in_channels": 1}
    network: ClassVar[str] = "Lumina2Transformer2DModel"
    published: ClassVar[Mapping[str, Any]] = {"cap_feat_dim": 2304}
    block_counts: ClassVar[tuple[str, ...]] = ("num_refiner_layers", "num_layers")
    pipeline: ClassVar[str] = "Lumina2Pipeline"
    usual_tap: ClassVar[str] = "block_9"  # a third of the depth: no published one was found

    def adapter(self) -> type[Lumina2Network]:
        from urepa.models.backbones.lumina2_net import Lumina2Network

        return Lumina2Network

    def check(self, latent_shape: tuple[int, int, int]) -> None:
        super().check(latent_shape)
        rows, columns = (side // self.patch for side in latent_shape[1:])
        if rows > self.axes_lens[1] or columns > self.axes_lens[2]:
            raise UserError(
                f"x0 has {rows}x{columns} tokens, and this {self.noun} positions for backbone.axes_lens="
                f"{list(self.axes_lens)} of text, rows and columns; give smaller images"
            )
