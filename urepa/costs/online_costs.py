"""The costs of networks that run during training because there is no cache of their output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from urepa.core.text_protocols import TextEncoder
from urepa.costs.counting import Flops, LiveBytes
from urepa.data.online_encoders import AT_ONCE
from urepa.data.stages.decoded_images import DECODED_AT_ONCE, decoder_without_weights
from urepa.data.stages.vae import shape_of_z, vae_without_weights
from urepa.data.stores.bucket_views import teachers_of
from urepa.models.teachers.several_teachers import by_name

TEACHER = "teacher"  # an online teacher
VAE = "VAE"
TEXT = "text encoder"  # encodes captions that have no records
DECODER = "decoder"  # decodes latents for an online teacher that is given decoded images
WITH_TEACHER = (TEACHER, DECODER)  # the networks that no longer run once the teacher is not used


@dataclass(frozen=True)
class OnlineCost:
    """The cost per image of a network that runs during training, and the size of the network."""

    flops: int
    parameters: int
    bytes: int
    at_work: int = 0  # bytes that one batch of its images needs at once

    @classmethod
    def of(cls, network: nn.Module, flops: int, at_work: int = 0) -> OnlineCost:
        parameters = list(network.parameters())
        return cls(flops, sum(p.numel() for p in parameters), sum(p.nbytes for p in parameters), at_work)


def online_costs(view: Any, teacher: Any | None, kind: str) -> dict[str, OnlineCost]:
    """The costs of each such network, for images of one bucket (`urepa.data.stores.bucket_views`)."""
    asked: dict[str, OnlineCost] = {}
    if getattr(view, "online_text", False):
        asked[TEXT] = text_cost(view.settings.text_encoder)
    if not (view.online_teacher or view.online_latents):
        return asked
    height, width = view.image_shape[1:]
    seen = teachers_of(view, teacher)
    with torch.device("meta"):
        for name, one in by_name(teacher).items() if view.online_teacher else ():
            network = one.build_without_weights()
            with Flops() as counter:
                seen[name].tokens(torch.empty(1, 3, height, width))
            own, others = OnlineCost.of(network, counter.total), asked.get(TEACHER, OnlineCost(0, 0, 0))
            asked[TEACHER] = OnlineCost(
                own.flops + others.flops, own.parameters + others.parameters, own.bytes + others.bytes
            )
        if view.online_latents:
            dtype = torch.bfloat16 if kind == "cuda" else torch.float32
            vae = vae_without_weights(view.vae, view.latent_shape[0])
            nn.Module.to(vae, dtype)  # diffusers' own `to` would print a needless warning
            with torch.no_grad(), Flops() as counter, LiveBytes(vae) as live:
                vae.encode(torch.empty(AT_ONCE, 3, height, width, dtype=dtype))
            asked[VAE] = OnlineCost.of(vae, counter.total // AT_ONCE, live.peak)
        decoder = decoder_without_weights(view) if TEACHER in asked else None
        if decoder is not None:
            dtype = torch.bfloat16 if kind == "cuda" else torch.float32
            nn.Module.to(decoder, dtype)
            with torch.no_grad(), Flops() as counter, LiveBytes(decoder) as live:
                decoder.decode(torch.empty(DECODED_AT_ONCE, *shape_of_z(decoder, view.latent_shape), dtype=dtype))
            again = asked[VAE].flops if VAE in asked else 0  # images are encoded once more for the decoder
            asked[DECODER] = OnlineCost.of(decoder, counter.total // DECODED_AT_ONCE + again, live.peak)
    return asked


def text_cost(encoder: TextEncoder) -> OnlineCost:
    """The cost of one caption in a text encoder: the products with the matrices of its networks, all of which are
    counted. The products within attention, which are few, and the memory of activations are not counted."""
    built = encoder.build()
    networks = built.build_without_weights()
    flops = sum(2 * length * _matrices(one) for length, one in zip(built.lengths, networks, strict=True))
    return OnlineCost.of(networks, flops)


def _matrices(network: nn.Module) -> int:
    return sum(module.weight.numel() for module in network.modules() if isinstance(module, nn.Linear))
