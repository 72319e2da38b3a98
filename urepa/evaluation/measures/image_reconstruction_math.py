"""Generates held-out images under their own conditions and measures how far they are from the originals.

Shapes: N images, B of a chunk, H and W rows and columns in pixels, T tokens, D their width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from urepa.core.errors import UserError
from urepa.evaluation.conditioned_images import (
    CHUNK,
    first_rows,
    generate,
    own_condition,
    pixel_error,
    real_images,
    save_picture,
    token_distance,
    tokens_of,
    withhold,
)
from urepa.evaluation.conditioned_settings import check_few
from urepa.evaluation.context import Context, Incomplete
from urepa.evaluation.features import held_out_samples, subset
from urepa.evaluation.measures.image_distances_math import is_circular
from urepa.evaluation.measures.image_reconstruction import ImageReconstruction


def reconstruct(asked: ImageReconstruction, context: Context) -> dict[str, float]:
    """The distances, and those of the references. It also writes the picture. Raises `Incomplete` if an encoder is not
    available."""
    samples = subset(held_out_samples(context), asked.images)
    condition = own_condition(context, samples)
    check_few(len(samples), 2, "because images are also compared with other images")
    encoders, lacking = available(asked.encoders)
    real_N3HW = real_images(context, samples)
    pictures = {
        "original": real_N3HW,
        "reconstruction": generate(asked, context, samples, condition),
        "caption alone": generate(asked, context, samples, withhold(condition, "image")),
    }
    of_kind = {"": "reconstruction", "_text": "caption alone"}
    metrics: dict[str, float] = {}
    for kind, picture in of_kind.items():
        metrics[f"final/image_pixel_error{kind}"] = pixel_error(real_N3HW, pictures[picture])
    metrics["final/image_pixel_error_other"] = pixel_error(real_N3HW, real_N3HW.roll(1, dims=0))
    features = {"": {name: tokens_of(context, images_N3HW) for name, images_N3HW in pictures.items()}}
    for name, network in encoders.items():
        features[name] = {what: network_tokens(context, network, images) for what, images in pictures.items()}
    for name, tokens in features.items():
        real_NTD = tokens["original"]
        found = {kind: token_distance(real_NTD, tokens[picture]) for kind, picture in of_kind.items()}
        found["_other"] = token_distance(real_NTD, real_NTD.roll(1, dims=0))
        measure, ending = ("image_distance", f"/{name}") if name else ("image_token_distance", "")
        metrics |= {f"final/{measure}{kind}{ending}": value for kind, value in found.items()}
    if encoders and not lacking:
        for kind in (*of_kind, "_other"):
            named = [metrics[f"final/image_distance{kind}/{name}"] for name in encoders]
            metrics[f"final/image_distance{kind}"] = sum(named) / len(named)
    metrics |= {f"final/circular/{name}": 1.0 for name, network in encoders.items() if is_circular(context, network)}
    save_picture(context, "image_reconstruction", first_rows(pictures, asked.shown))
    if lacking:
        raise Incomplete(metrics, lacking)
    return metrics


def available(declared: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The networks whose weights are there, and the reasons why the others are not."""
    built = {name: encoder.build() for name, encoder in declared.items()}
    lacking: dict[str, str] = {}
    for name, network in built.items():
        try:
            network.weights_sha256()
        except UserError as error:
            lacking[f"encoders.{name}"] = str(error)
    return {name: network for name, network in built.items() if f"encoders.{name}" not in lacking}, lacking


def network_tokens(context: Context, network: Any, rgb_N3HW: Tensor) -> Tensor:
    """A network's tokens [N,T,D] of pictures, on the CPU, in its own precision. Half of the squared distance of two
    tokens of unit length is 1 less their cosine; LPIPS (Zhang et al. 2018) weights it by channel."""
    with torch.no_grad(), torch.autocast(context.device.type, enabled=False):
        parts = rgb_N3HW.split(CHUNK)
        return torch.cat([network.tokens(part.to(context.device)).x_BND.cpu() for part in parts])
