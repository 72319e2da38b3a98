"""Stable Diffusion 3's transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.declared_keys import SIZE, setting
from urepa.core.errors import UserError
from urepa.core.part_names import POOLED, TEXT
from urepa.models.published_transformer import PublishedTransformer

if TYPE_CHECKING:
    from urepa.models.backbones.sd3_net import SD3Network


@dataclass
class SD3(PublishedTransformer):
    """Stable Diffusion 3's transformer (Esser et al. 2024, arXiv 2403.03206), conditioned on the frozen tokens of
    captions and their pooled vector. SD3.5 has the same architecture with other sizes."""

    _target_: str = "urepa.models.backbones.sd3.SD3"
    weights: str = setting('a hub id, a local diffusers folder, or "random"')
    gradient_checkpointing: bool = setting("recompute blocks in the backward pass: less memory, more time")
    num_layers: int = setting("number of blocks", ge=1, le=SIZE)
    num_attention_heads: int = setting("heads of attention in a block", ge=1, le=SIZE)
    pos_embed_max_size: int = setting(
        "largest number of image tokens along a side: the size of the table of positions", ge=1, le=SIZE
    )
    dual_attention_layers: list[int] = setting("blocks with a second attention, among image tokens only", ge=0, le=SIZE)
    qk_norm: str | None = setting("normalisation of queries and keys: rms_norm, or null")
    family: ClassVar[str] = "sd3"
    title: ClassVar[str] = "Stable Diffusion 3"
    condition_parts: ClassVar[tuple[str, ...]] = (TEXT, POOLED)
    condition: ClassVar[str] = (
        "The condition is a caption: its frozen tokens are a second stream beside the image's, padding included, "
        "and its pooled vector is embedded and added to the time embedding. If the caption is withheld, both are the "
        "data's null condition."
    )
    text_fields: ClassVar[Mapping[str, str]] = {"joint_attention_dim": TEXT, "pooled_projection_dim": POOLED}
    network: ClassVar[str] = "SD3Transformer2DModel"
    published: ClassVar[Mapping[str, Any]] = {"attention_head_dim": 64}
    pipeline: ClassVar[str] = "StableDiffusion3Pipeline"
    usual_tap: ClassVar[str] = "block_8"

    def adapter(self) -> type[SD3Network]:
        from urepa.models.backbones.sd3_net import SD3Network

        return SD3Network

    def architecture(self) -> dict[str, Any]:
        width = self.num_attention_heads * self.published["attention_head_dim"]
        return {"caption_projection_dim": width, **super().architecture()}

    def check(self, latent_shape: tuple[int, int, int]) -> None:
        super().check(latent_shape)
        side = max(latent_shape[1:]) // self.patch
        if side > self.pos_embed_max_size:
            raise UserError(
                f"x0 has {side} tokens a side, and this {self.noun} positions for backbone.pos_embed_max_size="
                f"{self.pos_embed_max_size}; give smaller images"
            )
