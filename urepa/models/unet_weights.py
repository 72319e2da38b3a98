"""Loads diffusers' UNet2DConditionModel of a family from a hub id or a local folder, or makes one with random
weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from urepa.core.errors import UserError
from urepa.core.files import read_json
from urepa.models.backbones.backbone_sizes import RANDOM
from urepa.models.diffusers_weights import ModuleKind, module_folder, read_folder, read_hub
from urepa.models.unet_families import FAMILIES, check_unet_config


def unet_kind(family: str) -> ModuleKind:
    """A family's U-Net in its pipeline."""

    def check(config: Any, where: str) -> None:
        check_unet_config(config, family, where)

    return ModuleKind("UNet2DConditionModel", "unet", "U-Net", check)


def load_unet(weights: str, family: str, dtype: torch.dtype = torch.float32) -> Any:
    """Loads the U-Net (UNet2DConditionModel).

    Args:
        weights: a hub id, a local diffusers folder (of the pipeline or of the U-Net), or "random".
        family: a key of `urepa.models.unet_families.FAMILIES`.
        dtype: of the weights that are read, except those of norms. Random weights are in fp32.

    Raises UserError if the files are not those of such a U-Net.
    """
    from diffusers import UNet2DConditionModel

    if weights == RANDOM:
        return UNet2DConditionModel(**FAMILIES[family].architecture)
    if Path(weights).is_dir():
        return unet_from_folder(unet_folder(Path(weights)), family, dtype)
    return unet_from_hub(weights, family, dtype)


def unet_without_weights(weights: str, family: str) -> Any:
    """The U-Net with random weights, also on the meta device: no weights are read or fetched. The architecture comes
    from a local folder's config.json; without one it is the published one."""
    from diffusers import UNet2DConditionModel

    architecture: Any = FAMILIES[family].architecture
    if Path(weights).is_dir():
        architecture = read_json(unet_folder(Path(weights)) / "config.json")
        check_unet_config(architecture, family, weights)
    return UNet2DConditionModel.from_config(dict(architecture))


def check_unet_channels(unet: Any, channels: int, weights: str) -> None:
    """Raises UserError if the track's x0 has another number of channels."""
    if unet.config.in_channels != channels:
        raise UserError(
            f"the U-Net of {weights} takes {unet.config.in_channels} latent channels; the track has {channels}"
        )


def unet_folder(folder: Path) -> Path:
    """The folder with the U-Net's config.json; `folder` is this one or the pipeline's."""
    return module_folder(folder, "unet")


def unet_from_folder(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Any:
    """Loads the U-Net from its own folder."""
    return read_folder(folder, unet_kind(family), dtype)


def unet_from_hub(weights: str, family: str, dtype: torch.dtype = torch.float32) -> Any:
    """Loads the U-Net of a pipeline on the hub. Its config is checked before its weights are fetched."""
    return read_hub(weights, unet_kind(family), dtype)
