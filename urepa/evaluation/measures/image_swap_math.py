"""Generates images under other images' vectors and patches and compares them with both.

Shapes: N pairs, H and W rows and columns in pixels, T tokens, D their width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from urepa.core.part_names import CLS, PATCHES
from urepa.evaluation.conditioned_images import (
    exchange,
    generate,
    layout_of,
    own_condition,
    real_images,
    save_picture,
    similarity,
    tokens_of,
)
from urepa.evaluation.conditioned_settings import check_few
from urepa.evaluation.context import Context
from urepa.evaluation.features import held_out_samples, subset
from urepa.evaluation.measures.image_swap import FEWEST, PICTURE, WHY, ImageSwap

EXCHANGED = {"none": (), "vector": (CLS,), "patches": (PATCHES,), "both": (CLS, PATCHES)}


def swap(asked: ImageSwap, context: Context) -> dict[str, float]:
    """The similarities by what is exchanged. It also writes the picture."""
    samples = subset(held_out_samples(context), asked.pairs)
    condition = own_condition(context, samples)
    check_few(len(samples), FEWEST, WHY)
    donors = condition.rows(torch.arange(1, len(samples) + 1) % len(samples))
    real_N3HW = real_images(context, samples)
    rows = {"original": real_N3HW, "donor": real_N3HW.roll(-1, dims=0)}
    real_NTD = tokens_of(context, real_N3HW)
    metrics = compare({}, real_NTD)
    for name, parts in EXCHANGED.items():
        made_N3HW = generate(asked, context, samples, exchange(condition, donors, *parts))
        metrics |= compare({name: tokens_of(context, made_N3HW)}, real_NTD)
        rows[f"exchanged: {name}"] = made_N3HW
    save_picture(context, PICTURE, {label: list(images) for label, images in rows.items()})
    return metrics


def compare(made: dict[str, Tensor], real_NTD: Tensor) -> dict[str, float]:
    """The similarities of generated images' tokens [N,T,D], by what was exchanged, to those of the donors (the next
    original), of the originals, and of all third images; without generated images, those of originals and donors."""
    found: dict[str, float] = {}
    for what, of in (("layout", layout_of), ("tokens", lambda tokens_NTD: tokens_NTD)):
        own_NTD = of(real_NTD)
        if not made:
            found[f"final/swap_{what}_real"] = float(similarity(own_NTD, own_NTD.roll(-1, dims=0)).mean())
        for name, tokens_NTD in made.items():
            like_NN = torch.stack([similarity(of(tokens_NTD), own_NTD.roll(-k, 0)) for k in range(len(own_NTD))])
            found[f"final/swap_{what}/{name}"] = float(like_NN[1].mean())
            found[f"final/swap_{what}_own/{name}"] = float(like_NN[0].mean())
            found[f"final/swap_{what}_chance/{name}"] = float(like_NN[2:].mean())
    return found
