"""Small random VAEs of published families in diffusers' files, and images decoded with them as `urepa.generate` does.

Shapes: B images, C channels, H/W latent, S side.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from photos import write_vae
from torch import Tensor

# scale and shift of AutoencoderKL in published models
OF_SD, OF_SDXL = {"scaling_factor": 0.18215}, {"scaling_factor": 0.13025}
OF_SD3 = {"scaling_factor": 1.5305, "shift_factor": 0.0609}
OF_FLUX = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
SCALING = {  # by case; the others have Flux.1's
    **{"sd3": OF_SD3, "sd35": OF_SD3, "sd15": OF_SD, "sdxl": OF_SDXL, "kolors": OF_SDXL},
    **{"pixart_alpha": OF_SD, "pixart": OF_SDXL, "auraflow": OF_SDXL},
}


def write_family_vae(folder: Path, case: str, channels: int) -> Path:
    """Writes FOLDER/vae of the family's class, for an x0 with so many channels."""
    if case == "sana":
        torch.manual_seed(1)
        small_dc().save_pretrained(folder / "vae")
    elif case.startswith("flux2"):
        torch.manual_seed(0)
        small_flux2(channels).save_pretrained(folder / "vae")
    else:
        write_vae(folder, channels, **SCALING.get(case, OF_FLUX))
    return folder


def small_dc() -> Any:
    """A random AutoencoderDC: 8 channels at 1/32."""
    from diffusers import AutoencoderDC

    return AutoencoderDC(
        **{"latent_channels": 8, "encoder_block_out_channels": (8,) * 6, "decoder_block_out_channels": (8,) * 6},
        **{"encoder_layers_per_block": (1,) * 6, "decoder_layers_per_block": (1,) * 6},
        **{"encoder_qkv_multiscales": ((),) * 6, "decoder_qkv_multiscales": ((),) * 6, "attention_head_dim": 8},
        **{"encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock"},
    )


def small_flux2(channels: int) -> Any:
    """A random AutoencoderKLFlux2 whose packed latents have so many channels, with statistics that have an effect."""
    from diffusers import AutoencoderKLFlux2

    vae: Any = AutoencoderKLFlux2(latent_channels=channels // 4, norm_num_groups=4, block_out_channels=(8,) * 4)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    return vae


def decoder_of(folder: Path, compose: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
    """x0 [B,C,H,W] to images [B,3,S,S] in [0,1], by a latent track with the VAE of this folder, as `urepa.generate`
    decodes."""
    from urepa.training.assembly import build_part

    to_rgb: Callable[[Tensor], Tensor] = build_part(compose("data=track_b")["data"] | {"vae": str(folder)}).to_rgb
    return to_rgb
