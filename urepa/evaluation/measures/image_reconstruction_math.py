"""Generates held-out images under their own conditions and measures how far they are from the originals.

Shapes: N images, B of a chunk, H and W rows and columns in pixels, T tokens, D their width.
"""

from __future__ import annotations

import torch

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
from urepa.evaluation.measures.image_distances_math import available_encoders, encode_tokens, is_circular
from urepa.evaluation.measures.image_reconstruction import PICTURE, ImageReconstruction


def reconstruct(asked: ImageReconstruction, context: Context) -> dict[str, float]:
    """The distances, and those of the references. It also writes the picture. Raises `Incomplete` if an encoder is not
    available."""
    samples = subset(held_out_samples(context), asked.images)
    condition = own_condition(context, samples)
    check_few(len(samples), 2, "because images are also compared with other images")
    encoders, lacking = available_encoders(asked.encoders)
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
        features[name] = {
            what: torch.cat([encode_tokens(context, network, part).x_BND.cpu() for part in images_N3HW.split(CHUNK)])
            for what, images_N3HW in pictures.items()
        }
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
    save_picture(context, PICTURE, first_rows(pictures, asked.shown))
    if lacking:
        raise Incomplete(metrics, lacking)
    return metrics
