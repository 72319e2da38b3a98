"""Flux.2's transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import SIZE, setting
from urepa.core.part_names import TEXT
from urepa.models.backbones.backbone_sizes import check_guidance
from urepa.models.published_transformer import PublishedTransformer

if TYPE_CHECKING:
    from urepa.models.backbones.flux2_net import Flux2Network


@dataclass
class Flux2(PublishedTransformer):
    """Flux.2's transformer (Black Forest Labs 2025), conditioned on the frozen tokens of captions."""

    _target_: str = "urepa.models.backbones.flux2.Flux2"
    weights: str = setting('a hub id, a local diffusers folder, or "random"')
    gradient_checkpointing: bool = setting("recompute blocks in the backward pass: less memory, more time")
    guidance: float | None = setting(
        "the guidance scale that the model embeds, in training and for images; null: no guidance embedding",
        ge=0,
    )
    num_layers: int = setting("number of double-stream blocks", ge=1, le=SIZE)
    num_single_layers: int = setting("number of single-stream blocks after them", ge=1, le=SIZE)
    num_attention_heads: int = setting("heads of attention in a block", ge=1, le=SIZE)
    joint_attention_dim: int = setting("width of a text token", ge=1, le=SIZE)
    guidance_embeds: bool = setting("whether the model embeds a guidance scale")
    family: ClassVar[str] = "flux2"
    title: ClassVar[str] = "Flux.2"
    condition_parts: ClassVar[tuple[str, ...]] = (TEXT,)
    text_fields: ClassVar[Mapping[str, str]] = {"joint_attention_dim": TEXT}
    channel_fields: ClassVar[Mapping[str, int]] = {"in_channels": 1}
    network: ClassVar[str] = "Flux2Transformer2DModel"
    own_settings: ClassVar[tuple[str, ...]] = ("guidance",)
    block_counts: ClassVar[tuple[str, ...]] = ("num_layers", "num_single_layers")
    patch: ClassVar[int] = 1
    vae_factor: ClassVar[int] = 16
    usual_tap: ClassVar[str] = "block_18"  # a third of the depth: no published one was found

    @property
    def pipeline(self) -> str:
        """Flux2Pipeline for a model that embeds a guidance scale, Klein's pipeline for a model that does not."""
        return "Flux2Pipeline" if self.guidance_embeds else "Flux2KleinPipeline"

    @property
    def condition(self) -> str:  # type: ignore[override]
        """A description of the condition, in sentences."""
        embedded = f" A scale of guidance, {self.guidance:g}, is embedded." if self.guidance is not None else ""
        return (
            "The condition is a caption: its frozen tokens are a second stream beside the image's, padding "
            f"included.{embedded} If the caption is withheld, they are the data's null condition."
        )

    def adapter(self) -> type[Flux2Network]:
        from urepa.models.backbones.flux2_net import Flux2Network

        return Flux2Network

    def check(self, latent_shape: tuple[int, int, int]) -> None:
        super().check(latent_shape)
        check_guidance(self.guidance, self.guidance_embeds)
