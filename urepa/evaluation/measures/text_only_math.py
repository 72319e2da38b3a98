"""Generates several images of each caption, with and without an image, and measures how different they are.

Shapes: N captions, V variants, H and W rows and columns in pixels, T tokens, D their width.
"""

from __future__ import annotations

import torch

from urepa.evaluation.conditioned_images import (
    generate,
    layout_of,
    mean_pairwise_distance,
    own_condition,
    real_images,
    save_picture,
    tokens_of,
    withhold,
)
from urepa.evaluation.conditioned_settings import check_few
from urepa.evaluation.context import Context
from urepa.evaluation.features import held_out_samples, subset
from urepa.evaluation.measures.text_only import FEWEST, PICTURE, WHY, TextOnly


def measure_diversity(asked: TextOnly, context: Context) -> dict[str, float]:
    """The distances by condition. It also writes the picture: a column for each caption."""
    samples = subset(held_out_samples(context), asked.captions)
    condition = own_condition(context, samples)
    check_few(len(samples), FEWEST, WHY)
    real_N3HW = real_images(context, samples)
    rows = {"original": real_N3HW}
    metrics = {
        f"final/diversity_{what}_real": mean_pairwise_distance(of(tokens_of(context, real_N3HW)))
        for what, of in MEASURES.items()
    }
    for name, own in {"text": withhold(condition, "image"), "both": condition}.items():
        made = [generate(asked, context, samples, own, variant) for variant in range(asked.variants)]
        rows |= {f"{name}, noise {variant}": images for variant, images in enumerate(made)}
        tokens_NVTD = torch.stack([tokens_of(context, images) for images in made], dim=1)
        for what, of in MEASURES.items():
            each = [mean_pairwise_distance(of(tokens_VTD)) for tokens_VTD in tokens_NVTD]
            metrics[f"final/diversity_{what}/{name}"] = sum(each) / len(each)
    save_picture(context, PICTURE, {label: list(images) for label, images in rows.items()})
    return metrics


MEASURES = {"layout": layout_of, "tokens": lambda tokens_NTD: tokens_NTD}
