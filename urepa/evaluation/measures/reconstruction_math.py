"""Decodes images from their first tokens and measures the errors.

Shapes: N images, B images of a chunk, K tokens of an image, CHW latent, S side of an image, M tokens [D] of an encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from urepa.core import random_draws
from urepa.core.conditions import Condition
from urepa.core.errors import UserError
from urepa.core.files import write_whole
from urepa.core.png import labelled_grid, to_pixels
from urepa.data.lists.samples import Sample
from urepa.evaluation.conditioned_images import token_distance
from urepa.evaluation.context import Context, Incomplete
from urepa.evaluation.features import held_out_samples, subset
from urepa.evaluation.frechet_and_kid import Moments, frechet_distance
from urepa.evaluation.image_tokens import codes_of, powers_of_two, tokenizer_of
from urepa.evaluation.images.generated_images_math import decode_rgb
from urepa.evaluation.measures.image_distances_math import (
    available_encoders,
    encode_tokens,
    image_features,
    is_circular,
)
from urepa.evaluation.measures.reconstruction import PICTURE, Reconstruction
from urepa.method.flow_sampling import sample
from urepa.method.guidance import scales_of
from urepa.method.objectives.flow_math import FlowMath

CHUNK = 64
ALWAYS = (0.0, 1.0)


def reconstruct(asked: Reconstruction, context: Context) -> dict[str, float]:
    """The errors by number of tokens. It also writes the picture. Raises `Incomplete` if an encoder is not
    available."""
    encoders, lacking = available_encoders(asked.encoders)
    backbone = tokenizer_of(context)
    samples = subset(held_out_samples(context), asked.images)
    if len(samples) < 2:
        raise UserError(
            "reconstruction needs two held-out images or more, because it also decodes the tokens of another image; "
            "give a track with more"
        )
    codes_NK = codes_of(context, samples)
    real_N3SS = decode_rgb(context, context.cache.x0(samples)).cpu()
    real = {name: Encoded(context, encoder, real_N3SS) for name, encoder in encoders.items()}
    counts = powers_of_two(backbone.registers)
    metrics, columns = {}, []
    for count in counts:
        made_N3SS = _decode(asked, context, samples, codes_NK, count)
        columns.append(made_N3SS[: asked.shown])
        mse_N = _errors(made_N3SS, real_N3SS)
        metrics[f"final/reconstruction_mse/{count}"] = float(mse_N.mean())
        metrics[f"final/reconstruction_psnr/{count}"] = float((-10 * mse_N.clamp(min=1e-10).log10()).mean())
        for name, encoder in encoders.items():
            made = Encoded(context, encoder, made_N3SS)
            metrics[f"final/reconstruction_fd/{name}_{count}"] = frechet_distance(real[name].moments, made.moments)
            metrics[f"final/reconstruction_distance/{name}_{count}"] = made.distance(real[name])
            if is_circular(context, encoder):
                metrics[f"final/circular/{name}_{count}"] = 1.0
    others_N3SS = _decode(asked, context, samples, codes_NK.roll(1, dims=0), backbone.registers)
    metrics["final/reconstruction_mse_other"] = float(_errors(others_N3SS, real_N3SS).mean())
    for name, encoder in encoders.items():
        distance = Encoded(context, encoder, others_N3SS).distance(real[name])
        metrics[f"final/reconstruction_distance_other/{name}"] = distance
    nothing_N3SS = _decode(asked, context, samples, codes_NK, 0)
    metrics["final/reconstruction_mse_null"] = float(_errors(nothing_N3SS, real_N3SS).mean())
    write_whole(
        context.picture_file(PICTURE), picture([*columns, real_N3SS[: asked.shown]], [s.sample_id for s in samples])
    )
    if lacking:
        raise Incomplete(metrics, lacking)
    return metrics


class Encoded:
    """An encoder's tokens of images, and the moments of their features.

    Args:
        rgb_N3SS: images in [0,1].
    """

    def __init__(self, context: Context, encoder: Any, rgb_N3SS: Tensor) -> None:
        tokens = [encode_tokens(context, encoder, part) for part in rgb_N3SS.split(CHUNK)]
        self.tokens_NMD = torch.cat([part.x_BND.cpu() for part in tokens])
        features_ND = torch.cat([image_features(part) for part in tokens]).cpu().numpy()
        self.moments = Moments(features_ND.shape[1])
        self.moments.add(features_ND)

    def distance(self, other: Encoded) -> float:
        """The mean over images and positions of 1 − the cosine of the two tokens: 0 for the same images, at most 2."""
        return token_distance(self.tokens_NMD, other.tokens_NMD)


def _decode(asked: Reconstruction, context: Context, samples: Sequence[Sample], codes_NK: Tensor, count: int) -> Tensor:
    """Images [N,3,S,S] in [0,1], on the CPU, decoded from the first `count` codes of each, or if `count` is 0 under the
    null condition. The noise depends only on the image."""
    backbone = tokenizer_of(context)
    if not isinstance(context.objective, FlowMath):
        raise UserError("codes are decoded by a flow, and this run's objective is not one; leave reconstruction out")
    made = []
    for start in range(0, len(samples), CHUNK):
        part = samples[start : start + CHUNK]
        kept_B = torch.full((len(part),), max(count, 1), device=context.device)
        condition: Condition = backbone.condition_of(codes_NK[start : start + CHUNK].to(context.device), kept_B)
        condition = condition if count else condition.null()
        rngs = [random_draws.generator(random_draws.digest64("reconstruction", s.sample_id), "noise") for s in part]
        noise = torch.stack([random_draws.normal(context.track.latent_shape, rng) for rng in rngs])
        scales = scales_of(asked.guidance if count else 1.0, condition.names)
        inputs = (context.model.backbone, context.objective, noise.to(context.device), condition)
        x0 = sample(*inputs, "euler", asked.steps, scales, ALWAYS, rngs)
        made.append(decode_rgb(context, x0).cpu())
    return torch.cat(made)


def _errors(made_N3SS: Tensor, real_N3SS: Tensor) -> Tensor:
    """The mean squared error of each image: [N]."""
    return (made_N3SS.double() - real_N3SS.double()).pow(2).mean((1, 2, 3))


def picture(columns: Sequence[Tensor], names: Sequence[str]) -> bytes:
    """A PNG with a row for each image, labelled with its name, and a column for each of the batches [B,3,S,S]."""
    rows = [
        (name, [Image.fromarray(to_pixels(column[i])) for column in columns])
        for i, name in zip(range(len(columns[0])), names, strict=False)
    ]
    return labelled_grid(rows)
