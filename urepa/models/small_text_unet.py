"""The base class of declared backbones that are small U-Nets with the architecture of a published family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import BackboneFacts, Formula
from urepa.core.errors import UserError
from urepa.core.files import read_json
from urepa.models.backbones.backbone_sizes import RANDOM, check_head_width, check_unet, describe_unet_sizes
from urepa.models.published_unet import PublishedTextUNet
from urepa.models.unet_families import small_architecture

if TYPE_CHECKING:
    import torch

    from urepa.models.backbones.captioned_unet_net import CaptionedUNet


@dataclass
class SmallTextUNet(PublishedTextUNet):
    """The base of such a declaration, before that of the family: `class SDXLTiny(SmallTextUNet, SDXL)`. Random weights
    take the data's channels and widths of text; other weights are in a local folder, such as an export."""

    block_out_channels: list[int] = setting(
        "channels of each resolution, the finest first; multiples of 32", ge=1, le=SIZE
    )
    attention: list[bool] = setting("whether each resolution has cross-attention")
    layers_per_block: int = setting("residual blocks per resolution in the encoder", ge=1, le=SIZE)
    head_dim: int = setting("width of a head of attention", ge=1, le=SIZE)

    def check(self, latent_shape: tuple[int, int, int]) -> None:
        check_unet(self.block_out_channels, self.attention, latent_shape)
        check_head_width(self.block_out_channels, self.attention, self.head_dim)

    def check_widths(self, widths: Mapping[str, int]) -> None:
        if self.weights != RANDOM:
            super().check_widths(widths)

    def architecture(self, latent_shape: tuple[int, int, int], widths: Mapping[str, int]) -> dict[str, Any]:
        """The entries of unet/config.json that differ from the defaults. Raises UserError if weights in a local folder
        have others."""
        sizes = (self.block_out_channels, self.attention, self.layers_per_block, self.head_dim)
        architecture = small_architecture(self.family, *sizes, latent_shape=latent_shape, widths=widths)
        if self.weights != RANDOM:
            self._check_sizes(architecture)
        return architecture

    def _check_sizes(self, architecture: Mapping[str, Any]) -> None:
        files = [Path(self.weights) / place / "config.json" for place in ("unet", ".")]
        found = [read_json(file) for file in files if file.is_file()]
        if not found:
            raise UserError(
                f"backbone.weights={self.weights} is no local folder with a U-Net; give one, or {RANDOM}, for a small "
                f"U-Net of {self.title}"
            )
        for name in ("block_out_channels", "down_block_types", "layers_per_block", "attention_head_dim"):
            there, here = (list(v) if isinstance(v, tuple) else v for v in (found[0].get(name), architecture[name]))
            if there != here:
                raise UserError(
                    f"{self.weights} has {name}={there} in its config.json, and the settings of this backbone give "
                    f"{here}; give the sizes with which these weights were trained"
                )

    def build_frozen(
        self,
        dtype: torch.dtype,
        *,
        latent_shape: tuple[int, int, int],
        num_classes: int,
        widths: Mapping[str, int] | None = None,
    ) -> CaptionedUNet:
        from urepa.models.backbones.captioned_unet_net import captioned_unet, drawn_captioned_unet

        assert widths is not None, "the condition of its track is text"
        architecture = self.architecture(latent_shape, widths)
        known: Any = {"latent_shape": latent_shape, "widths": widths}
        if self.weights == RANDOM:
            return drawn_captioned_unet(architecture, self.family, self.gradient_checkpointing, **known)
        return captioned_unet(self.weights, self.family, self.gradient_checkpointing, dtype=dtype, **known)

    def build_without_weights(
        self, *, latent_shape: tuple[int, int, int], num_classes: int, widths: Mapping[str, int] | None = None
    ) -> CaptionedUNet:
        from urepa.models.backbones.captioned_unet_net import drawn_captioned_unet

        assert widths is not None, "the condition of its track is text"
        architecture = self.architecture(latent_shape, widths)
        known: Any = {"latent_shape": latent_shape, "widths": widths}
        return drawn_captioned_unet(architecture, self.family, self.gradient_checkpointing, **known)

    def description(self, facts: BackboneFacts) -> list[str | Formula]:
        sizes = (self.block_out_channels, self.attention, self.layers_per_block, self.head_dim)
        (family,) = super().description(facts)
        return [f"{family} {describe_unet_sizes(*sizes, facts)}"]
