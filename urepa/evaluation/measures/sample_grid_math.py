"""Conditional samples: a grid for inspection, and the classes that a k-NN on real images assigns to them.

Shapes: B samples, CHW latent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from urepa.core import random_draws
from urepa.core.files import write_whole
from urepa.core.png import grid_png, labelled_grid, to_pixels
from urepa.evaluation.context import Context
from urepa.evaluation.image_conditions import condition_of_images
from urepa.evaluation.image_counts import cache_counts
from urepa.evaluation.images.generated_images_math import decode_rgb
from urepa.evaluation.measures.sample_grid import SampleGrid
from urepa.method.ddpm_sampling import sample_by

CHUNK = 100


def samples_of(context: Context, class_ids: list[int], steps: int, guidance: float) -> Tensor:
    """Samples [B,C,H,W] on the CPU, from addressed noise by the objective's usual sampler."""
    out, numbers = [], Counter[int]()
    images = []
    for class_id in class_ids:
        images.append((class_id, numbers[class_id]))
        numbers[class_id] += 1
    for start in range(0, len(class_ids), CHUNK):
        part = images[start : start + CHUNK]
        rngs = [random_draws.generator(context.seed, "sample", 0, start + i) for i in range(len(part))]
        noise = torch.stack([random_draws.normal(context.track.latent_shape, rng) for rng in rngs]).to(context.device)
        condition = condition_of_images(context.cache, part).to(context.device)
        x0 = sample_by(context.model.backbone, context.objective, noise, condition, rngs, None, steps, guidance)
        out.append(x0.cpu())
    return torch.cat(out)


def sample(asked: SampleGrid, context: Context) -> dict[str, float]:
    """Generates samples by class: a grid in the run's folder and, if requested, the accuracy of the k-NN."""
    asked.check_images(cache_counts(context.cache))
    classes = min(asked.max_classes, context.track.num_classes)
    ids = [c for c in range(classes) for _ in range(asked.per_class)]
    x0 = samples_of(context, ids, asked.sampler_steps, asked.guidance)
    shown = [i for i in range(len(ids)) if i % asked.per_class < asked.shown_per_class]
    folder = context.folder / "samples"
    folder.mkdir(exist_ok=True)
    columns = min(asked.shown_per_class, asked.per_class)
    png = rows_png(decode_rgb(context, x0[shown]), context.cache.class_names, columns)
    write_whole(folder / f"step_{context.step:08d}.png", png)
    if asked.knn is None:
        return {}
    return {"final/samples_named_rightly": knn_accuracy(context, x0, ids, asked.knn)}


def rows_png(images_B3HW: Tensor, names: Sequence[str], columns: int) -> bytes:
    """A PNG with one row per class, with its name on the left if it has one."""
    if not names:
        return grid_png(images_B3HW, columns)
    rows = enumerate(images_B3HW.split(columns))
    return labelled_grid([(f"{c} {names[c]}", [Image.fromarray(to_pixels(i)) for i in row]) for c, row in rows])


def knn_accuracy(context: Context, x0: Tensor, ids: list[int], k: int) -> float:
    """The share of samples that a k-NN fitted to real training images assigns to their class."""
    from sklearn.neighbors import KNeighborsClassifier

    train = context.cache.splits["train"]
    real = context.cache.x0(train).flatten(1).numpy()
    knn = KNeighborsClassifier(k).fit(real, [s.class_id for s in train])
    return float((knn.predict(x0.flatten(1).numpy()) == np.array(ids)).mean())
