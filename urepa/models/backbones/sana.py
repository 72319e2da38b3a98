"""Sana's transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import SIZE, TINY, setting
from urepa.core.part_names import TEXT
from urepa.models.published_transformer import PublishedTransformer

if TYPE_CHECKING:
    from urepa.models.backbones.sana_net import SanaNetwork


@dataclass
class Sana(PublishedTransformer):
    """Sana's transformer with linear attention (Xie et al. 2024, arXiv 2410.10629), conditioned on the frozen tokens of
    captions."""

    _target_: str = "urepa.models.backbones.sana.Sana"
    weights: str = setting('a hub id, a local diffusers folder, or "random"')
    gradient_checkpointing: bool = setting("recompute blocks in the backward pass: less memory, more time")
    num_layers: int = setting("number of blocks", ge=1, le=SIZE)
    num_attention_heads: int = setting("heads of self-attention in a block", ge=1, le=SIZE)
    num_cross_attention_heads: int = setting("heads of cross-attention in a block", ge=1, le=SIZE)
    cross_attention_head_dim: int = setting("width of a head of cross-attention", ge=1, le=SIZE)
    cross_attention_dim: int = setting("width of a text token in cross-attention", ge=1, le=SIZE)
    qk_norm: str | None = setting("normalisation of queries and keys: rms_norm_across_heads, or null")
    interpolation_scale: float | None = setting(
        "divisor of the positions that are added to the tokens; null: no positions are added", ge=TINY
    )
    family: ClassVar[str] = "sana"
    title: ClassVar[str] = "Sana"
    condition_parts: ClassVar[tuple[str, ...]] = (TEXT,)
    condition: ClassVar[str] = (
        "The condition is a caption: cross-attention attends to its frozen tokens, without the masked ones. If the "
        "caption is withheld, it attends to the data's null condition."
    )
    text_fields: ClassVar[Mapping[str, str]] = {"caption_channels": TEXT}
    network: ClassVar[str] = "SanaTransformer2DModel"
    pipeline: ClassVar[str] = "SanaPipeline"
    patch: ClassVar[int] = 1
    vae_factor: ClassVar[int] = 32
    usual_tap: ClassVar[str] = "block_10"

    def adapter(self) -> type[SanaNetwork]:
        from urepa.models.backbones.sana_net import SanaNetwork

        return SanaNetwork
