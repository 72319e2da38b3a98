"""SD-1.5's U-Net with the frozen text embeddings of the classes' prompts.

Shapes: K prompts (the last is the null prompt), L = 77 text positions, E = 768 text width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from urepa.core.errors import UserError
from urepa.models.backbones.backbone_sizes import check_prompts
from urepa.models.backbones.unet_net import UNet
from urepa.models.unet_families import FAMILIES
from urepa.models.unet_weights import check_unet_channels, load_unet, unet_without_weights
from urepa.models.weight_files import read_torch

FAMILY = "sd15"
POSITIONS = 77  # of a prompt


def sd15_without_weights(
    weights: str,
    gradient_checkpointing: bool,
    *,
    latent_shape: tuple[int, int, int],
    num_classes: int,
) -> UNet:
    """The module with random weights and uninitialised prompts: neither is read or fetched. The architecture comes from
    a local folder's config.json; without one it is SD-1.5's."""
    unet = unet_without_weights(weights, FAMILY)
    prompts_KLE = torch.empty(num_classes + 1, POSITIONS, unet.config.cross_attention_dim)
    return _with_prompts(unet, prompts_KLE, weights, gradient_checkpointing, latent_shape)


def sd15(
    weights: str,
    prompts: str,
    gradient_checkpointing: bool,
    *,
    latent_shape: tuple[int, int, int],
    num_classes: int,
    dtype: torch.dtype = torch.float32,
) -> UNet:
    """The U-Net and its prompts.

    Args:
        weights: a hub id, a local diffusers folder (of the pipeline or of the U-Net), or "random".
        prompts: the .pt file of text embeddings [K,77,768], K = num_classes + 1.
        gradient_checkpointing: recompute blocks in the backward pass to save memory.
        dtype: of the weights that are read, except those of norms.

    Raises UserError if the files are not those of an SD-1.5 U-Net.
    """
    prompts_KLE = load_prompts(Path(prompts), num_classes)
    unet = load_unet(weights, FAMILY, dtype)
    return _with_prompts(unet, prompts_KLE, weights, gradient_checkpointing, latent_shape)


def _with_prompts(
    unet: Any, prompts_KLE: Tensor, weights: str, gradient_checkpointing: bool, latent_shape: tuple[int, int, int]
) -> UNet:
    check_unet_channels(unet, latent_shape[0], weights)
    width = unet.config.cross_attention_dim
    if width != prompts_KLE.shape[2]:
        raise UserError(f"the U-Net of {weights} takes text of width {width}; the prompts have {prompts_KLE.shape[2]}")
    if gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return UNet(unet, prompts_KLE)


def load_prompts(path: Path, num_classes: int) -> Tensor:
    """Frozen text embeddings [K,L,E] in fp32; only tensors are unpickled."""
    check_prompts(path)
    prompts = read_torch(path)
    if not isinstance(prompts, Tensor) or prompts.ndim != 3 or len(prompts) != num_classes + 1:
        found = tuple(prompts.shape) if isinstance(prompts, Tensor) else type(prompts).__name__
        raise UserError(f"{path} holds {found}; expected [{num_classes + 1}, positions, width], the null prompt last")
    return prompts.float()


def write_random_prompts(file: Path, num_classes: int) -> None:
    """Writes random text embeddings in the format of the prompts stage."""
    width = FAMILIES[FAMILY].architecture["cross_attention_dim"]
    torch.save(torch.randn(num_classes + 1, POSITIONS, width).half(), file)
