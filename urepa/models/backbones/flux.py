"""Flux's transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import SIZE, setting
from urepa.core.part_names import POOLED, TEXT
from urepa.models.backbones.backbone_sizes import check_guidance
from urepa.models.published_transformer import PublishedTransformer

if TYPE_CHECKING:
    from urepa.models.backbones.flux_net import FluxNetwork


@dataclass
class Flux(PublishedTransformer):
    """Flux.1's transformer (Black Forest Labs 2024), conditioned on the frozen tokens of captions and their pooled
    vector."""

    _target_: str = "urepa.models.backbones.flux.Flux"
    weights: str = setting('a hub id, a local diffusers folder, or "random"')
    gradient_checkpointing: bool = setting("recompute blocks in the backward pass: less memory, more time")
    guidance: float | None = setting(
        "the guidance scale that the model embeds, in training and for images; null: no guidance embedding",
        ge=0,
    )
    num_layers: int = setting("number of double-stream blocks", ge=1, le=SIZE)
    num_single_layers: int = setting("number of single-stream blocks after them", ge=1, le=SIZE)
    num_attention_heads: int = setting("heads of attention in a block", ge=1, le=SIZE)
    guidance_embeds: bool = setting("whether the model embeds a guidance scale")
    family: ClassVar[str] = "flux"
    title: ClassVar[str] = "Flux.1"
    condition_parts: ClassVar[tuple[str, ...]] = (TEXT, POOLED)
    text_fields: ClassVar[Mapping[str, str]] = {"joint_attention_dim": TEXT, "pooled_projection_dim": POOLED}
    channel_fields: ClassVar[Mapping[str, int]] = {"in_channels": 4}  # 2x2 latent pixels
    network: ClassVar[str] = "FluxTransformer2DModel"
    own_settings: ClassVar[tuple[str, ...]] = ("guidance",)
    block_counts: ClassVar[tuple[str, ...]] = ("num_layers", "num_single_layers")
    pipeline: ClassVar[str] = "FluxPipeline"
    usual_tap: ClassVar[str] = "block_8"

    @property
    def condition(self) -> str:  # type: ignore[override]
        """A description of the condition, in sentences."""
        embedded = f", as a scale of guidance, {self.guidance:g}, is" if self.guidance is not None else ""
        return (
            "The condition is a caption: its frozen tokens are a second stream beside the image's, padding included, "
            f"and its pooled vector is embedded and added to the time embedding{embedded}. If the caption is withheld, "
            "both are the data's null condition."
        )

    def adapter(self) -> type[FluxNetwork]:
        from urepa.models.backbones.flux_net import FluxNetwork

        return FluxNetwork

    def check(self, latent_shape: tuple[int, int, int]) -> None:
        super().check(latent_shape)
        check_guidance(self.guidance, self.guidance_embeds)
