"""The VAE of a latent track, from diffusers' own files: a hub id or a local folder.

Shapes: B images, S image size, CHW latent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from urepa.errors import UserError
from urepa.hub import resolve, why_not
from urepa.weights import own_memory


def load_vae(weights: str) -> Any:
    """The frozen AutoencoderKL in fp32, on the CPU."""
    from diffusers import AutoencoderKL

    name, revision = resolve(weights)
    local = Path(name)
    where: dict[str, Any] = {"subfolder": "vae"} if not local.is_dir() or (local / "vae").is_dir() else {}
    where["revision"] = revision
    try:
        vae: Any = AutoencoderKL.from_pretrained(name, use_safetensors=True, torch_dtype=torch.float32, **where)
    except OSError as error:
        raise UserError(
            f"data.vae={weights} could not be loaded ({why_not(error, weights)}); or give a local diffusers folder"
        ) from error
    return own_memory(vae).eval().requires_grad_(False)


@torch.no_grad()
def encode(vae: Any, images_B3SS: Tensor) -> Tensor:
    """Images in [0,1] to the posterior's mode × the VAE's scaling factor (spec 000 §3.2)."""
    return vae.encode(images_B3SS * 2 - 1).latent_dist.mode() * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: Any, x0: Tensor) -> Tensor:
    """Latents to images [B,3,S,S] in [0,1]. One at a time: memory does not grow with B, nor does rounding depend
    on it."""
    images = [vae.decode(latent / vae.config.scaling_factor).sample for latent in x0.split(1)]
    return (torch.cat(images) / 2 + 0.5).clamp(0, 1)
