"""Images that a run generates under captions and images, and how pictures are compared.

Pictures are compared by the image encoder whose tokens are the run's conditions: its tokens, standardised by their mean
and deviation over the training images. A picture's layout is its tokens less their mean over the positions: what is the
same everywhere, such as colours and style, has no part in it.

Shapes: N images, B of a chunk, H and W rows and columns in pixels, T tokens, D their width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from urepa.core import random_draws
from urepa.core.conditions import Condition, covered_parts, without_never_given
from urepa.core.errors import UserError
from urepa.core.evaluation_protocols import Picture
from urepa.core.files import write_whole
from urepa.core.png import labelled_grid, to_pixels
from urepa.data.lists.samples import Sample
from urepa.data.text_and_image_conditions import TextAndImageConditions, standardise
from urepa.evaluation.conditioned_settings import Conditioned
from urepa.evaluation.context import Context
from urepa.evaluation.images.generated_images_math import decode_rgb
from urepa.method.ddpm_sampling import sample_by

CHUNK = 32  # images that are generated or encoded together


def image_conditions(context: Context) -> TextAndImageConditions:
    """The object that makes the run's conditions. Raises UserError if they have no image."""
    conditions = context.cache.conditions
    if not isinstance(conditions, TextAndImageConditions):
        raise UserError("the conditions of this run have no image; leave this evaluation out")
    return conditions


def own_condition(context: Context, samples: Sequence[Sample]) -> Condition:
    """The condition [N] of held-out images: their captions and their own vectors and patches."""
    conditions = image_conditions(context)
    return without_never_given(conditions.of_samples(samples), conditions.dropout)


def exchange(condition: Condition, donor: Condition, *names: str) -> Condition:
    """The condition with the parts of these names from another one of as many images."""
    taken = {part for name in names for part in covered_parts(name, condition.names)}
    return Condition({part: (donor if part in taken else condition)[part] for part in condition.names})


def withhold(condition: Condition, name: str) -> Condition:
    """The condition with the parts of this name withheld from all images."""
    return condition.drop({name: torch.ones(len(condition), dtype=torch.bool, device=condition.device)})


def generate(
    asked: Conditioned, context: Context, samples: Sequence[Sample], condition: Condition, variant: int = 0
) -> Tensor:
    """Images [N,3,H,W] in multiples of 1/255, on the CPU. An image's noise depends only on the sample's id and the
    variant, so the images of a sample under several conditions begin with the same noise."""
    made = []
    for start in range(0, len(samples), CHUNK):
        part = samples[start : start + CHUNK]
        rngs = [
            random_draws.generator(random_draws.digest64("conditioned", s.sample_id), "noise", variant) for s in part
        ]
        shape = tuple(context.track.latent_shape)
        noise = torch.stack([random_draws.normal(shape, rng) for rng in rngs]).to(context.device)
        own = condition.rows(torch.arange(start, start + len(part))).to(context.device)
        x0 = sample_by(context.model.backbone, context.objective, noise, own, rngs, None, asked.steps, asked.scales)
        made.append(decode_rgb(context, x0).cpu())
    return torch.cat(made)


def real_images(context: Context, samples: Sequence[Sample]) -> Tensor:
    """The decoded x0 [N,3,H,W] of samples, in multiples of 1/255, on the CPU."""
    parts = [samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK)]
    return torch.cat([decode_rgb(context, context.cache.x0(part)).cpu() for part in parts])


# --- comparisons ------------------------------------------------------------------------------------------------


def records_of(context: Context, rgb_N3HW: Tensor) -> Tensor:
    """The image encoder's vector and tokens [N,1+T,D] of pictures, on the CPU, in the encoder's own precision."""
    conditions = image_conditions(context)
    with torch.no_grad(), torch.autocast(context.device.type, enabled=False):
        return torch.cat([conditions.encode(part) for part in rgb_N3HW.split(CHUNK)])


def tokens_of(context: Context, rgb_N3HW: Tensor) -> Tensor:
    """The image encoder's tokens [N,T,D] of pictures, standardised, on the CPU."""
    return standardise(records_of(context, rgb_N3HW)[:, 1:], *image_conditions(context).statistics.patches)


def layout_of(tokens_NTD: Tensor) -> Tensor:
    """The tokens less each picture's mean token."""
    return tokens_NTD - tokens_NTD.mean(1, keepdim=True)


def similarity(a_NTD: Tensor, b_NTD: Tensor) -> Tensor:
    """The cosine of the tokens at the same position, averaged over the positions: [N]."""
    return F.cosine_similarity(a_NTD.double(), b_NTD.double(), dim=-1).mean(-1)


def token_distance(a_NTD: Tensor, b_NTD: Tensor) -> float:
    """1 less the similarity, averaged over the pictures. This is half of the squared distance of tokens of unit length,
    which LPIPS (Zhang et al. 2018) weights by channel."""
    return 1 - float(similarity(a_NTD, b_NTD).mean())


def pixel_error(a_N3HW: Tensor, b_N3HW: Tensor) -> float:
    """The mean squared error of colours in [0, 1], averaged over the pictures."""
    return float((a_N3HW.double() - b_N3HW.double()).square().mean())


def mean_pairwise_distance(tokens_NTD: Tensor) -> float:
    """The token distance of two different pictures, averaged over all pairs."""
    pairs = list(combinations(range(len(tokens_NTD)), 2))
    first, second = (torch.tensor(indices) for indices in zip(*pairs, strict=True))
    return token_distance(tokens_NTD[first], tokens_NTD[second])


def save_picture(context: Context, picture: Picture, rows: Mapping[str, Sequence[Tensor]]) -> None:
    """Writes the picture, with a labelled row for each entry: its images [3,H,W]."""
    tiles = [(label, [Image.fromarray(to_pixels(image)) for image in images]) for label, images in rows.items()]
    write_whole(context.picture_file(picture), labelled_grid(tiles))


def first_rows(images: Mapping[str, Tensor], shown: int) -> dict[str, Any]:
    """The first images of each batch, for `save_picture`."""
    return {label: list(batch[:shown]) for label, batch in images.items()}
