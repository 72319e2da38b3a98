"""AuraFlow's transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.declared_keys import SIZE, setting
from urepa.core.errors import UserError
from urepa.core.part_names import TEXT
from urepa.models.published_transformer import PublishedTransformer

if TYPE_CHECKING:
    from urepa.models.backbones.auraflow_net import AuraFlowNetwork

HEAD_WIDTH = 256


@dataclass
class AuraFlow(PublishedTransformer):
    """AuraFlow's transformer (fal 2024), conditioned on the frozen tokens of captions."""

    _target_: str = "urepa.models.backbones.auraflow.AuraFlow"
    weights: str = setting('a hub id, a local diffusers folder, or "random"')
    gradient_checkpointing: bool = setting("recompute blocks in the backward pass: less memory, more time")
    num_mmdit_layers: int = setting("number of double-stream blocks", ge=1, le=SIZE)
    num_single_dit_layers: int = setting("number of single-stream blocks after them", ge=1, le=SIZE)
    num_attention_heads: int = setting("heads of attention in a block", ge=1, le=SIZE)
    pos_embed_max_size: int = setting(
        "largest number of image tokens, a square number: the table of positions has one for each", ge=1, le=SIZE
    )
    family: ClassVar[str] = "auraflow"
    title: ClassVar[str] = "AuraFlow"
    condition_parts: ClassVar[tuple[str, ...]] = (TEXT,)
    condition: ClassVar[str] = (
        "The condition is a caption: its frozen tokens are a second stream beside the image's; masked tokens "
        "are 0 and take part in attention. If the caption is withheld, they are the data's null condition."
    )
    text_fields: ClassVar[Mapping[str, str]] = {"joint_attention_dim": TEXT}
    network: ClassVar[str] = "AuraFlowTransformer2DModel"
    block_counts: ClassVar[tuple[str, ...]] = ("num_mmdit_layers", "num_single_dit_layers")
    pipeline: ClassVar[str] = "AuraFlowPipeline"
    usual_tap: ClassVar[str] = "block_12"  # a third of the depth: no published tap was found

    def adapter(self) -> type[AuraFlowNetwork]:
        from urepa.models.backbones.auraflow_net import AuraFlowNetwork

        return AuraFlowNetwork

    def architecture(self) -> dict[str, Any]:
        head_width = self.published.get("attention_head_dim", HEAD_WIDTH)
        return {"caption_projection_dim": self.num_attention_heads * head_width, **super().architecture()}

    def check(self, latent_shape: tuple[int, int, int]) -> None:
        super().check(latent_shape)
        most = math.isqrt(self.pos_embed_max_size)
        if most**2 != self.pos_embed_max_size:
            raise UserError(
                f"backbone.pos_embed_max_size={self.pos_embed_max_size} is no square, and positions are those of a "
                f"square grid; give {most**2} or {(most + 1) ** 2}"
            )
        side = max(latent_shape[1:]) // self.patch
        if side > most:
            raise UserError(
                f"x0 has {side} tokens a side, and this {self.noun} positions for {most} "
                f"(backbone.pos_embed_max_size={self.pos_embed_max_size}); give smaller images"
            )
