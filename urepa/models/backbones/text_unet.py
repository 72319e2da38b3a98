"""The text-conditional U-Net of the small tracks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.descriptions import BackboneFacts, CardFacts
from urepa.core.errors import UserError
from urepa.core.part_names import POOLED, TEXT
from urepa.models.backbones.tiny_unet import TinyUNet
from urepa.models.diffusers_cards import BY_TEXT, diffusers_card

if TYPE_CHECKING:
    from urepa.models.backbones.text_unet_net import TextUNet as Network


@dataclass
class TextUNet(TinyUNet):
    """The U-Net of `tiny_unet` with cross-attention to a caption's tokens, and with its pooled vector added to the time
    embedding."""

    _target_: str = "urepa.models.backbones.text_unet.TextUNet"
    conditioned_on: ClassVar[str] = "text"
    condition_parts: ClassVar[tuple[str, ...]] = (TEXT, POOLED)

    def check(self, latent_shape: tuple[int, int, int]) -> None:
        super().check(latent_shape)
        if not any(self.attention):
            raise UserError("backbone.attention is false at all resolutions, so captions would have no effect; set one")

    def build(
        self, *, latent_shape: tuple[int, int, int], num_classes: int, widths: Mapping[str, int] | None = None
    ) -> Network:
        from urepa.models.backbones.text_unet_net import text_unet

        assert widths is not None, "the condition of its track is text"
        return text_unet(
            self.block_out_channels,
            self.attention,
            self.layers_per_block,
            self.cross_attention_dim,
            self.head_dim,
            latent_shape=latent_shape,
            widths=widths,
        )

    def describe_condition(self, facts: BackboneFacts) -> str:
        return (
            "The condition is a caption: cross-attention attends to its tokens without padding, projected linearly to "
            f"width {self.cross_attention_dim} if they have another; its vector is projected and added to the time "
            "embedding. If the caption is withheld, a trainable token and a trainable vector replace it."
        )

    def model_card(self, facts: CardFacts) -> str:
        return diffusers_card(facts, self.base, BY_TEXT)
