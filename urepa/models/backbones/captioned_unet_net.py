"""The U-Nets of SD-1.5, SDXL and Kolors, conditioned on text from a frozen encoder.

Shapes: B batch, C channels, H/W latent, L text positions, D width of a token, P width of the pooled vector, E width of
cross-attention, T time embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from urepa.core.conditions import Condition
from urepa.core.part_names import POOLED, TEXT
from urepa.models.backbones.backbone_sizes import RANDOM
from urepa.models.backbones.unet_net import StagedUNet
from urepa.models.unet_families import FAMILIES, SIZES, check_text_widths
from urepa.models.unet_weights import check_unet_channels, load_unet, unet_without_weights

VAE_FACTOR = 8  # image pixels per latent pixel and side, for all three families


class CaptionedUNet(StagedUNet):
    """Uses the parts of a condition unchanged: the track provides the null values for a withheld caption."""

    def __init__(self, unet: Any, adapter_files: str) -> None:
        super().__init__(unet)
        self.adapter_files = adapter_files

    def attended(self, condition: Condition) -> tuple[Tensor, Tensor | None]:
        text = condition[TEXT]
        assert text.mask_BL is not None, "tokens have a mask"
        return self.project_text(text.tokens_BLD, text.mask_BL)

    def added_to_time(self, condition: Condition, x_t: Tensor, temb_BT: Tensor) -> Tensor | None:
        if self.unet.config.addition_embed_type is None:
            return None
        added = {"text_embeds": condition[POOLED].vector_BD, "time_ids": size_ids(x_t)}
        added_BT: Tensor = self.unet.get_aug_embed(emb=temb_BT, encoder_hidden_states=None, added_cond_kwargs=added)
        return added_BT


def size_ids(x_t: Tensor) -> Tensor:
    """SDXL's micro-conditioning [B,6] for x_t's size (Podell et al. 2023, arXiv 2307.01952, §2.2), with the pipelines'
    defaults: an image of this size, not scaled, not cropped. float32."""
    height, width = (side * VAE_FACTOR for side in x_t.shape[-2:])
    ids = torch.zeros(len(x_t), SIZES, device=x_t.device)  # made on the device: a copy from the host would synchronise
    ids[:, 0::4], ids[:, 1::4] = height, width
    return ids


def captioned_unet(
    weights: str,
    family: str,
    gradient_checkpointing: bool,
    *,
    latent_shape: tuple[int, int, int],
    widths: Mapping[str, int],
    dtype: torch.dtype = torch.float32,
) -> CaptionedUNet:
    """A family's U-Net for text of these widths (by name of the condition's part).

    Args:
        weights: a hub id, a local diffusers folder (of the pipeline or of the U-Net), or "random".
        family: a key of `urepa.models.unet_families.FAMILIES`.
        gradient_checkpointing: recompute blocks in the backward pass to save memory.
        dtype: of the weights that are read, except those of norms.

    Raises UserError if the files are not those of such a U-Net, or if it takes text of other widths.
    """
    unet = load_unet(weights, family, dtype)
    return _for_text(unet, weights, family, gradient_checkpointing, latent_shape, widths)


def captioned_unet_without_weights(
    weights: str,
    family: str,
    gradient_checkpointing: bool,
    *,
    latent_shape: tuple[int, int, int],
    widths: Mapping[str, int],
) -> CaptionedUNet:
    """The U-Net with random weights: none are read or fetched. The architecture comes from a local folder's
    config.json; without one it is the published one."""
    unet = unet_without_weights(weights, family)
    return _for_text(unet, weights, family, gradient_checkpointing, latent_shape, widths)


def drawn_captioned_unet(
    architecture: Mapping[str, Any],
    family: str,
    gradient_checkpointing: bool,
    *,
    latent_shape: tuple[int, int, int],
    widths: Mapping[str, int],
) -> CaptionedUNet:
    """A family's U-Net with random weights, with these entries of config.json."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(**architecture)
    return _for_text(unet, RANDOM, family, gradient_checkpointing, latent_shape, widths)


def _for_text(
    unet: Any,
    weights: str,
    family: str,
    gradient_checkpointing: bool,
    latent_shape: tuple[int, int, int],
    widths: Mapping[str, int],
) -> CaptionedUNet:
    check_unet_channels(unet, latent_shape[0], weights)
    check_text_widths(unet.config, family, weights, widths)
    if gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return CaptionedUNet(unet, FAMILIES[family].adapter_files)
