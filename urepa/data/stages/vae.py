"""The VAE of a latent track, read from diffusers files: a hub id or a local folder.

Shapes: B images, S image size, CHW latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.hub_names import download_failure, resolve
from urepa.data.stages.vae_config import FLUX2, KL, LatentScaling, class_name, known_config, patch_of
from urepa.models.weight_files import own_memory

# the VAEs of SD and SDXL, and sd-vae-ft-mse: 83,653,863 parameters with four latent channels
ARCHITECTURE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}


def vae_without_weights(weights: str, latent_channels: int) -> Any:
    """The VAE on the meta device: no weights are read and nothing is fetched. The architecture comes from the
    config.json in a local folder or the hub's cache; without one it is SD's."""
    config = known_config(weights)
    architecture = ARCHITECTURE | {"latent_channels": latent_channels} if config is None else config
    return _class(class_name(architecture, weights)).from_config(architecture)


def _class(name: str) -> Any:
    """The class in diffusers with this name, one of `CLASSES`."""
    import diffusers

    return getattr(diffusers, name)


def load_vae(weights: str) -> Any:
    """The frozen VAE in fp32, on the CPU, of the class that its config names: one of `CLASSES`."""
    name, revision = resolve(weights)
    local, options = Path(name), {"use_safetensors": True, "torch_dtype": torch.float32, "revision": revision}
    places: list[dict[str, str]] = [{"subfolder": "vae"}, {}]  # in a pipeline; a VAE alone
    if local.is_dir():
        places = places[:1] if (local / "vae").is_dir() else places[1:]
    reasons: list[OSError] = []
    for place in places:
        try:
            config = _class(KL).load_config(name, revision=revision, **place)
            vae: Any = _class(class_name(config, weights)).from_pretrained(name, **options, **place)
        except OSError as error:
            reasons.append(error)
        else:
            scaling_of(vae, weights)  # raises now rather than when something is decoded
            return own_memory(vae).eval().requires_grad_(False)
    raise UserError(
        f"data.vae={weights} could not be loaded ({download_failure(reasons[0], weights)}); or give a local diffusers "
        "folder"
    ) from reasons[0]


def scaling_of(vae: Any, name: str | None = None) -> LatentScaling:
    """The constants that convert between the VAE's latents and x0. Error messages call the VAE `name`; None: the name
    that it was loaded by."""
    if type(vae).__name__ == FLUX2:
        mean, variance = (part.detach().float().cpu() for part in (vae.bn.running_mean, vae.bn.running_var))
        return LatentScaling.of_bn(vae.config, mean, variance)
    return LatentScaling.of(vae.config, vae.config.get("_name_or_path", KL) if name is None else name)


def shape_of_z(vae: Any, x0_shape: Sequence[int]) -> tuple[int, int, int]:
    """The shape [C,H,W] of the latents that a VAE decodes for an x0 of this shape; needs no weights."""
    (channels, rows, columns), patch = x0_shape, patch_of(vae.config)
    return channels // patch**2, rows * patch, columns * patch


def mode_of(encoded: Any) -> Tensor:
    """The latent in the output of a VAE's `encode`: its posterior's mode, or the latent itself without a posterior."""
    return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent


@torch.no_grad()
def encode(vae: Any, images_B3SS: Tensor) -> Tensor:
    """Images in [0,1] to x0, computed from the posterior's mode."""
    return scaling_of(vae).to_x0(mode_of(vae.encode(images_B3SS * 2 - 1)))


@torch.no_grad()
def decode(vae: Any, x0: Tensor) -> Tensor:
    """Latents to images [B,3,S,S] in [0,1]. They are decoded one at a time, so that neither memory nor rounding depends
    on B."""
    scaling = scaling_of(vae)
    images = [vae.decode(scaling.to_z(latent)).sample for latent in x0.split(1)]
    return (torch.cat(images) / 2 + 0.5).clamp(0, 1)
