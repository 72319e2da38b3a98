"""The class-conditional U-Net of the small tracks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.backbone_protocols import FoundWeights, WeightsKind
from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import BackboneFacts, CardFacts, Formula, number
from urepa.core.errors import UserError
from urepa.models.backbones.backbone_sizes import (
    TRAINED_ROWS,
    check_head_width,
    check_unet,
    check_unet_tap,
    describe_unet_sizes,
    unet_files,
)
from urepa.models.diffusers_cards import diffusers_card
from urepa.models.drawn_backbone import DrawnBackbone

if TYPE_CHECKING:
    from urepa.models.backbones.unet_net import StagedUNet


@dataclass
class TinyUNet(DrawnBackbone):
    """diffusers' UNet2DConditionModel with random weights, and a trained vector for each class."""

    _target_: str = "urepa.models.backbones.tiny_unet.TinyUNet"
    block_out_channels: list[int] = setting(
        "channels of each resolution, the finest first; multiples of 32", ge=1, le=SIZE
    )
    attention: list[bool] = setting("whether each resolution has cross-attention")
    layers_per_block: int = setting("residual blocks per resolution in the encoder", ge=1, le=SIZE)
    cross_attention_dim: int = setting("width of a class's vector", ge=1, le=SIZE)
    head_dim: int = setting("width of a head of attention", ge=1, le=SIZE)
    family: ClassVar[str] = "tiny_unet"
    noun: ClassVar[str] = "U-Net"
    is_diffusers_unet: ClassVar[bool] = True
    conditioned_on: ClassVar[str] = "class"

    def check(self, latent_shape: tuple[int, int, int]) -> None:
        check_unet(self.block_out_channels, self.attention, latent_shape)
        check_head_width(self.block_out_channels, self.attention, self.head_dim)

    def check_latents(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """No check: a U-Net takes every shape that halves evenly, which `check` tests for each."""

    def check_tap(self, tap: str) -> None:
        check_unet_tap(tap)

    def check_grids(self, latent_shape: tuple[int, int, int], grids: Mapping[str, Sequence[int]]) -> None:
        """No check: the head raises an error when it is called if a tap's grid does not fit."""

    def check_adapters(self, targets: str, blocks: str) -> None:
        """No check: every choice of layers and blocks can be adapted."""

    def find_weights(self, path: Path) -> FoundWeights:
        rows = path / TRAINED_ROWS
        if not rows.is_file():
            raise UserError(
                f"checkpoint={path} has no {TRAINED_ROWS}, which a small U-Net's export has; "
                "for weights of another backbone name it with +experiment=NAME"
            )
        return FoundWeights(WeightsKind.unet, (rows, *unet_files(path, "no unet/config.json")))

    def build(
        self, *, latent_shape: tuple[int, int, int], num_classes: int, widths: Mapping[str, int] | None = None
    ) -> StagedUNet:
        from urepa.models.backbones.unet_net import tiny_unet

        return tiny_unet(
            self.block_out_channels,
            self.attention,
            self.layers_per_block,
            self.cross_attention_dim,
            self.head_dim,
            latent_shape=latent_shape,
            num_classes=num_classes,
        )

    def description(self, facts: BackboneFacts) -> list[str | Formula]:
        sizes = (self.block_out_channels, self.attention, self.layers_per_block, self.head_dim)
        return [
            f"The backbone is a {self.conditioned_on}-conditional U-Net (UNet2DConditionModel of diffusers)"
            f"{facts.initial_weights(self.base)}, on x0 of {facts.x0_shape}. {describe_unet_sizes(*sizes, facts)} "
            f"{self.describe_condition(facts)}"
        ]

    def describe_condition(self, facts: BackboneFacts) -> str:
        """The last sentence of `description`."""
        return (
            f"The condition is one of {number(facts.num_classes + 1)} trainable vectors of width "
            f"{self.cross_attention_dim}, a class each and the null condition."
        )

    def model_card(self, facts: CardFacts) -> str:
        return diffusers_card(facts, self.base)

    def hub_metadata(self) -> dict[str, Any]:
        return {"library_name": "diffusers", "tags": ["urepa"]}
