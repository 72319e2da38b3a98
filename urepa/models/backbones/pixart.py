"""PixArt-α's and PixArt-Σ's transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.declared_keys import SIZE, setting
from urepa.core.part_names import TEXT
from urepa.models.published_transformer import PublishedTransformer

if TYPE_CHECKING:
    from urepa.models.backbones.pixart_net import PixArtNetwork


@dataclass
class PixArt(PublishedTransformer):
    """PixArt's transformer (Chen et al. 2023, α: arXiv 2310.00426; 2024, Σ: arXiv 2403.04692), conditioned on the
    frozen tokens of captions."""

    _target_: str = "urepa.models.backbones.pixart.PixArt"
    weights: str = setting('a hub id, a local diffusers folder, or "random"')
    gradient_checkpointing: bool = setting("recompute blocks in the backward pass: less memory, more time")
    num_layers: int = setting("number of blocks", ge=1, le=SIZE)
    num_attention_heads: int = setting("heads of attention in a block", ge=1, le=SIZE)
    sample_size: int = setting("side of the latents of the published training, in latent pixels", ge=1, le=SIZE)
    interpolation_scale: int | None = setting(
        "divisor of the positions; null: sample_size / 64, at least 1", ge=1, le=SIZE
    )
    use_additional_conditions: bool | None = setting(
        "whether the image's size and aspect ratio are embedded; null: only if sample_size is 128"
    )
    family: ClassVar[str] = "pixart"
    title: ClassVar[str] = "PixArt"
    condition_parts: ClassVar[tuple[str, ...]] = (TEXT,)
    text_fields: ClassVar[Mapping[str, str]] = {"caption_channels": TEXT}
    channel_fields: ClassVar[Mapping[str, int]] = {"in_channels": 1, "out_channels": 2}  # and a variance
    network: ClassVar[str] = "PixArtTransformer2DModel"
    published: ClassVar[Mapping[str, Any]] = {"caption_channels": 4096}
    usual_tap: ClassVar[str] = "block_10"
    predicts: ClassVar[str] = "ddpm"
    loads_lora: ClassVar[bool] = False

    @property
    def embeds_size(self) -> bool:
        """Whether the module embeds the image's size and aspect ratio."""
        given = self.use_additional_conditions
        return self.sample_size == 128 if given is None else given

    @property
    def condition(self) -> str:  # type: ignore[override]
        """A description of the condition, in sentences."""
        size = " The height and width of the image in pixels and their ratio are embedded with the time."
        return (
            "The condition is a caption: cross-attention attends to its frozen tokens, without the masked ones. If "
            "the caption is withheld, it attends to the data's null condition. The first half of the output's channels "
            f"is the prediction; the second half, the variance, is not trained.{size if self.embeds_size else ''}"
        )

    @property
    def pipeline(self) -> str:
        return "PixArtAlphaPipeline" if self.embeds_size else "PixArtSigmaPipeline"

    def adapter(self) -> type[PixArtNetwork]:
        from urepa.models.backbones.pixart_net import PixArtNetwork

        return PixArtNetwork

    def architecture(self) -> dict[str, Any]:
        width = self.num_attention_heads * self.published.get("attention_head_dim", 72)
        return {"cross_attention_dim": width, **super().architecture()}
