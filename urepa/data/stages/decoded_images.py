"""Images decoded from latents by an autoencoder, which a teacher can see instead of the originals
(`data.teacher_sees`).

Shapes: R records, B images, S image size, CHW latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.hub_names import download_failure, resolve
from urepa.data.online_encoders import ImagesOf, images_of, own_device
from urepa.data.stages.encode import vae_encoder
from urepa.data.stages.vae import load_vae, scaling_of, vae_without_weights
from urepa.data.stages.vae_config import LatentScaling, known_config, known_scaling
from urepa.models.weight_files import own_memory

IMAGES, DECODED, TAE_DECODED = "images", "decoded", "tae_decoded"  # values of data.teacher_sees
TINY = "AutoencoderTiny"  # the class in diffusers
DECODED_AT_ONCE = 8  # images that are decoded together: the decoder's last feature maps are large


def load_tae(weights: str, latent_channels: int) -> Any:
    """The frozen Tiny AutoEncoder in fp32, on the CPU. Raises UserError if `weights` is not one, cannot be loaded,
    or is for latents with another number of channels."""
    from diffusers import AutoencoderTiny

    name, revision = resolve(weights)
    try:
        found = AutoencoderTiny.load_config(name, revision=revision).get("_class_name", TINY)
        if found != TINY:
            raise UserError(f"data.tae={weights} is of the class {found}; give an {TINY}")
        tae: Any = AutoencoderTiny.from_pretrained(
            name, use_safetensors=True, torch_dtype=torch.float32, revision=revision
        )
    except OSError as error:
        raise UserError(
            f"data.tae={weights} could not be loaded ({download_failure(error, weights)}); or give a local folder of it"
        ) from error
    if tae.config.latent_channels != latent_channels:
        raise UserError(
            f"data.tae={weights} decodes latents of {tae.config.latent_channels} channels; data.latent_shape has "
            f"{latent_channels}"
        )
    return own_memory(tae).eval().requires_grad_(False)


class Decoder:
    """Decodes x0 to images on this process's device; on a GPU in bf16, like the encoder of the latents stage.

    A Tiny AutoEncoder was distilled on scaled latents, (z − shift)·scale. This is x0, so its own config has scale 1 and
    shift 0. Raises UserError if x0 is scaled otherwise, as with latents_mean.
    """

    def __init__(self, sees: str, vae: str, tae: str | None, latent_channels: int) -> None:
        if sees == DECODED:
            self.autoencoder = load_vae(vae)
            self.scaling = scaling_of(self.autoencoder)
        else:
            assert tae is not None, "checked by LatentTrack.check"
            scaling = known_scaling(vae)
            if scaling is not None and scaling.latents_mean is not None:
                raise UserError(
                    f"data.teacher_sees={sees}: a Tiny AutoEncoder takes latents without latents_mean, which "
                    f"data.vae={vae} normalises by; give data.teacher_sees={DECODED}"
                )
            self.autoencoder = load_tae(tae, latent_channels)
            self.scaling = LatentScaling.of(self.autoencoder.config, tae)
        del self.autoencoder.encoder  # never used
        self.device = own_device()
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        torch.nn.Module.to(self.autoencoder, self.device, self.dtype)  # diffusers' own `to` would warn needlessly

    @torch.inference_mode()
    def __call__(self, x0: Tensor) -> Tensor:
        """[R,C,H,W] to [R,3,S,S] in [0,1], fp32, on the decoder's device."""
        with torch.autocast(self.device.type, enabled=False):  # validation calls this inside autocast
            parts = [self._decode(part) for part in x0.to(self.device).float().split(DECODED_AT_ONCE)]
        return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)

    def _decode(self, x0: Tensor) -> Tensor:
        images: Tensor = self.autoencoder.decode(self.scaling.to_z(x0).to(self.dtype)).sample.float()
        return images


def read_decoded(latents: Any, decoder: Decoder) -> Callable[[list[str]], Tensor]:
    """A function that decodes the latents of these keys to images [R,3,S,S]; for moments it decodes the mean."""
    has_moments = len(latents.shape) == 4

    def read(keys: list[str]) -> Tensor:
        records = latents.tensor(keys)
        return decoder(records[:, 0] if has_moments else records)

    return read


def through_latents(encode: Callable[[Tensor], np.ndarray], decoder: Decoder) -> Callable[[Tensor], Tensor]:
    """A function that encodes images, uint8 [B,3,S,S], rounds the latents to fp16 as a store does, and decodes them."""

    def show(images: Tensor) -> Tensor:
        return decoder(torch.from_numpy(encode(images)).half())

    return show


@dataclass
class TeacherView:
    """What a latent track's teachers see: its images, or images decoded from their latents."""

    sees: str  # data.teacher_sees
    vae: str
    tae: str | None
    latent_channels: int

    @property
    def is_decoded(self) -> bool:
        """Whether the teachers see decoded images."""
        return self.sees != IMAGES

    def facts(self) -> dict[str, Any]:
        """The entries on this view in a token store's manifest, beside the teacher's own; none for images."""
        return {"sees": self.sees, "decoder": decoder_name(self.vae, self.tae)} if self.is_decoded else {}

    @cached_property
    def _decoder(self) -> Decoder:
        """Raises UserError if the weights cannot be loaded or are for other latents."""
        return Decoder(self.sees, self.vae, self.tae, self.latent_channels)

    def show(self) -> Callable[[Tensor], Tensor] | None:
        """The function that the tokens stage applies to images before a teacher sees them; None: the images as they
        are."""
        if not self.is_decoded:
            return None
        encode, _ = vae_encoder(self.vae, moments=False)
        return through_latents(encode, self._decoder)

    def online(self, latents: Any, archive: ImagesOf | None) -> ImagesOf:
        """A function from the records' keys to the images that teachers see during training.

        Args:
            latents: the store of latents, or the `OnlineLatents` that encode them.
            archive: the images, if the teachers see these.
        """
        if self.is_decoded:
            return read_decoded(latents, self._decoder)
        assert archive is not None
        return partial(images_of, read=archive)


def decoder_without_weights(view: Any) -> Any | None:
    """The autoencoder that decodes during training, on the meta device; None if the teacher sees images or is cached.
    `view`: a track's caches, or one of its buckets."""
    sees = getattr(view, "teacher_sees", IMAGES)
    if sees == IMAGES or not view.online_teacher:
        return None
    if sees == DECODED:
        autoencoder = vae_without_weights(view.vae, view.latent_shape[0])
    else:
        from diffusers import AutoencoderTiny

        config = known_config(view.tae)
        known = {"latent_channels": view.latent_shape[0]} if config is None else config
        autoencoder = AutoencoderTiny.from_config(known)
    del autoencoder.encoder
    return autoencoder


def decoder_name(vae: str, tae: str | None) -> str:
    """The decoder's name in manifests: the last part of a hub id or of a folder."""
    return Path(resolve(vae if tae is None else tae)[0]).name
