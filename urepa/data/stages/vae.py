"""The VAE of a latent track, from diffusers' own files: a hub id or a local folder.

Shapes: B images, S image size, CHW latent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.files import read_json
from urepa.core.hub_names import download_failure, resolve
from urepa.models.weight_files import own_memory

# of SD's VAEs, sd-vae-ft-mse and SDXL's: 83,653,863 parameters with four latent channels
ARCHITECTURE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}


def vae_without_weights(weights: str, latent_channels: int) -> Any:
    """The same module without values, on the meta device: nothing is read or fetched. The architecture is that of a
    local folder's config.json, or SD's."""
    from diffusers import AutoencoderKL

    found = [file for place in ("vae", ".") if (file := Path(weights) / place / "config.json").is_file()]
    architecture = read_json(found[0]) if found else ARCHITECTURE | {"latent_channels": latent_channels}
    return AutoencoderKL.from_config(architecture)


def load_vae(weights: str) -> Any:
    """The frozen AutoencoderKL in fp32, on the CPU."""
    from diffusers import AutoencoderKL

    name, revision = resolve(weights)
    local, options = Path(name), {"use_safetensors": True, "torch_dtype": torch.float32, "revision": revision}
    places: list[dict[str, str]] = [{"subfolder": "vae"}, {}]  # of a pipeline; of a VAE by itself
    if local.is_dir():
        places = places[:1] if (local / "vae").is_dir() else places[1:]
    reasons: list[OSError] = []
    for place in places:
        try:
            vae: Any = AutoencoderKL.from_pretrained(name, **options, **place)
        except OSError as error:
            reasons.append(error)
        else:
            return own_memory(vae).eval().requires_grad_(False)
    raise UserError(
        f"data.vae={weights} could not be loaded ({download_failure(reasons[0], weights)}); or give a local diffusers "
        "folder"
    ) from reasons[0]


@torch.no_grad()
def encode(vae: Any, images_B3SS: Tensor) -> Tensor:
    """Images in [0,1] to the posterior's mode × the VAE's scaling factor."""
    return vae.encode(images_B3SS * 2 - 1).latent_dist.mode() * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: Any, x0: Tensor) -> Tensor:
    """Latents to images [B,3,S,S] in [0,1]. One at a time: memory does not grow with B, nor does rounding depend
    on it."""
    images = [vae.decode(latent / vae.config.scaling_factor).sample for latent in x0.split(1)]
    return (torch.cat(images) / 2 + 0.5).clamp(0, 1)
