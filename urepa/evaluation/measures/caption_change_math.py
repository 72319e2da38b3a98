"""Generates images under other images' captions and measures how much they change, and to which class they are nearest.

Shapes: N images, S training images, K classes, H and W rows and columns in pixels, T tokens, D their width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from urepa.core.errors import UserError
from urepa.data.lists.samples import Sample
from urepa.data.text_and_image_conditions import standardise
from urepa.evaluation.conditioned_images import (
    exchange,
    first_rows,
    generate,
    image_conditions,
    own_condition,
    pixel_error,
    real_images,
    records_of,
    save_picture,
    token_distance,
    withhold,
)
from urepa.evaluation.conditioned_settings import check_few
from urepa.evaluation.context import Context
from urepa.evaluation.features import held_out_samples, labels_of, subset
from urepa.evaluation.measures.caption_change import FEWEST, PICTURE, WHY, CaptionChange


def change_captions(asked: CaptionChange, context: Context) -> dict[str, float]:
    """The changes, and the shares of images that are nearest to their caption's class. It also writes the picture."""
    samples = subset(held_out_samples(context), asked.images)
    condition = own_condition(context, samples)
    check_few(len(samples), FEWEST, WHY)
    captions = image_conditions(context).captions
    givers = other_captions(labels_of(samples), [captions[s.sample_id][0] for s in samples])
    changed = exchange(condition, condition.rows(torch.from_numpy(givers)), "text")
    pictures = {
        "original": real_images(context, samples),
        "own caption": generate(asked, context, samples, condition),
        "another noise": generate(asked, context, samples, condition, variant=1),
        "another caption": generate(asked, context, samples, changed),
        "that caption's image": real_images(context, [samples[i] for i in givers]),
        "that caption alone": generate(asked, context, samples, withhold(changed, "image")),
    }
    save_picture(context, PICTURE, first_rows(pictures, asked.shown))
    records = {name: records_of(context, images) for name, images in pictures.items()}
    own, metrics = "own caption", dict[str, float]()
    for ending, name in (("", "another caption"), ("_noise", "another noise")):
        tokens = (standardise(records[n][:, 1:], *image_conditions(context).statistics.patches) for n in (own, name))
        metrics[f"final/caption_change_tokens{ending}"] = token_distance(*tokens)
        metrics[f"final/caption_change_pixels{ending}"] = pixel_error(pictures[own], pictures[name])
    return metrics | _named(asked, context, samples, givers, records)


def other_captions(classes_N: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """For each image the index of another one whose caption it gets: the next one of another class, or of another
    caption if all have one class. Raises UserError if all captions are alike."""
    labels = list(classes_N) if len(set(classes_N)) > 1 else list(captions)
    found = []
    for i, own in enumerate(labels):
        following = [*range(i + 1, len(labels)), *range(i)]
        others = [j for j in following if labels[j] != own]
        if not others:
            raise UserError("the captions of the held-out images are all alike; leave caption_change out")
        found.append(others[0])
    return np.array(found)


def _named(
    asked: CaptionChange, context: Context, samples: Sequence[Sample], givers: np.ndarray, records: dict[str, Tensor]
) -> dict[str, float]:
    """The shares of images nearest to their caption's class; none, with a line that says so, if there is one class."""
    train = subset(context.cache.splits["train"], asked.train_images)
    classes_S, classes_N = labels_of(train), labels_of(samples)
    if len(set(classes_S)) < 2:
        print("caption_change: the training images have one class, so there is no nearest class of a caption")
        return {}
    store = context.cache.image_tokens
    assert store is not None, "the track has image tokens"
    of_vectors = image_conditions(context).statistics.vectors
    means_KD, classes_K = class_means(
        standardise(store.tensor([s.key for s in train]).float()[:, 0], *of_vectors), classes_S
    )
    wanted = {"own": ("own caption", classes_N), "exchanged": ("another caption", classes_N[givers])}
    wanted |= {"text": ("that caption alone", classes_N[givers]), "real": ("original", classes_N)}
    found = {}
    for name, (picture, wanted_N) in wanted.items():
        vectors_ND = standardise(records[picture][:, 0], *of_vectors)
        nearest_N = classes_K[torch.cdist(vectors_ND.double(), means_KD).argmin(1).numpy()]
        key = "final/caption_named_real" if name == "real" else f"final/caption_named/{name}"
        found[key] = float((nearest_N == wanted_N).mean())
    return found | {"final/caption_named_chance": 1 / len(classes_K)}


def class_means(vectors_SD: Tensor, classes_S: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """The mean vector [K,D] of each class, float64, and the classes' ids [K]."""
    classes_K = np.unique(classes_S)
    means = [vectors_SD[torch.from_numpy(classes_S == one)].double().mean(0) for one in classes_K]
    return torch.stack(means), classes_K
